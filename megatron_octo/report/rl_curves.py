"""Curves of an RL run in one picture: accuracy, response length, entropy and mismatch, over rollout steps."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_record
from megatron_octo.report.models import Count, Record, RlHeldoutResult, Value
from megatron_octo.report.numbers import smoothed
from megatron_octo.report.panels import INK, MUTED, save_figure, style
from megatron_octo.report.rows import read_rows
from megatron_octo.runtime.run_folder import RunFolder

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"
Lines = tuple[tuple[str, str, str], ...]
"""The metric, the label and the colour of each line."""
_PANELS: tuple[tuple[str, Lines], ...] = (
    ("share of responses", (("accuracy", "right", _BLUE), ("truncated_share", "cut at the limit", _ORANGE))),
    (
        "response length, tokens",
        (
            ("response_length", "mean", _BLUE), ("response_length_right", "of right ones", _GREEN),
            ("response_length_p90", "90% are shorter", _GREY), ("response_limit", "limit", _ORANGE),
        ),
    ),
    ("entropy, nats a token", (("entropy", "entropy", _BLUE),)),
    (
        "vLLM against the trainer",
        (("mismatch_mean", "mean |log-prob difference|", _BLUE), ("mismatch_far_share", "share off by 10%", _ORANGE)),
    ),
)  # fmt: skip


class RolloutRow(Record):
    """One rollout step, from metrics.jsonl. Any metric may be missing: without right responses, they have no length."""

    step: Count
    accuracy: Value = math.nan
    truncated_share: Value = math.nan
    response_length: Value = math.nan
    response_length_right: Value = math.nan
    response_length_p90: Value = math.nan
    response_limit: Value = math.nan
    entropy: Value = math.nan
    mismatch_mean: Value = math.nan
    mismatch_far_share: Value = math.nan


def draw_rl_curves(run: RunFolder, stage: str) -> Path | None:
    """Draw `rl/<stage>/curves.png` from the run's metrics; None if there is no rollout step yet.

    Raises:
        DataError: heldout.json is not what its writer leaves.
    """
    folder = run.rl(stage)
    rows = read_rows(folder.metrics, RolloutRow)
    if not rows:
        return None
    heldout = None
    if folder.heldout.is_file():
        heldout = read_record(folder.heldout, RlHeldoutResult, DataError, "remove it and run `octo rl` again")
    figure = Figure(figsize=(11.0, 6.8), dpi=150, facecolor="white")
    grid = figure.subplots(2, 2, sharex=True)
    for axes, (title, lines) in zip(grid.flat, _PANELS, strict=True):
        style(axes)
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=6)
        for metric, label, colour in lines:
            _draw_metric(axes, rows, metric, label, colour)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for axes in grid[1]:
        axes.set_xlabel("rollout step", color=INK)
    figure.suptitle(f"RL from {stage}", x=0.06, y=0.975, ha="left", fontsize=15, fontweight="bold", color=INK)
    if heldout is not None:
        text = (
            f"greedy, {heldout.problems} held-out problems: {heldout.accuracy_before:.1%} before, "
            f"{heldout.accuracy_after:.1%} after"
        )
        figure.text(0.98, 0.955, text, ha="right", fontsize=10.5, color=MUTED)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.88, bottom=0.08, hspace=0.24, wspace=0.14)
    return save_figure(figure, folder.curves)


def _draw_metric(axes: Axes, rows: list[RolloutRow], metric: str, label: str, colour: str) -> None:
    points = [(row.step, getattr(row, metric)) for row in rows if metric in row.model_fields_set]
    if not points:
        return
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smoothed(values, window=max(1, len(values) // 10)), color=colour, linewidth=2.0, label=label)
