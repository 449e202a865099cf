"""Training curves of a whole tree of stages in one picture."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from megatron_octo.recipe import BASE, Recipe
from megatron_octo.report.numbers import smoothed
from megatron_octo.report.panels import (
    INK,
    MUTED,
    Curve,
    draw_loss,
    draw_rate,
    label_above,
    label_at_right,
    save_figure,
    style,
    write_tokens,
)
from megatron_octo.report.rows import StepRow, read_steps, read_validation
from megatron_octo.runtime.run_folder import RunFolder

_TRUNK = "#3b4252"
_LEAVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")  # distinguishable with colour blindness


def draw_curves(recipe: Recipe, run: RunFolder, path: Path) -> Path:
    """Draw loss and learning rate of all stages that have begun against lineage tokens, as a PNG at `path`.

    Light lines show single steps, heavy lines a running mean, rings the validation loss (the mean over the sources
    of the stage's mixture, weighted by their shares). Once a branch has begun, a second column shows the branches
    alone, since they are short compared with the stage they start from. A run without a step gives a frame that
    says so.
    """
    curves = _curves(recipe, run)
    branches = [curve for curve in curves if recipe.stages[curve.stage].parent.stage != BASE]
    windows = [_window_of_all(curves)] + ([_window_of_branches(branches)] if branches else [])
    figure = Figure(figsize=(12.5 if branches else 10.0, 6.6), dpi=150, facecolor="white")
    ratios = (1.15, 1.0) if branches else (1.0,)
    grid = figure.subplots(2, len(windows), sharex="col", squeeze=False, height_ratios=(3.2, 1.0), width_ratios=ratios)
    for column, window in enumerate(windows):
        loss, rate = grid[0, column], grid[1, column]
        for axes in (loss, rate):
            style(axes)
        draw_loss(loss, curves, window)
        draw_rate(rate, curves)
        write_tokens(rate, ticks=8 if len(windows) == 1 else 6)
        rate.set_xlim(*window)
        rate.set_xlabel("tokens over the lineage", color=INK)
    _write_labels(grid[0, 0], grid[0, -1], curves, branches)
    grid[0, 0].set_ylabel("loss (nats a token)", color=INK)
    grid[1, 0].set_ylabel("learning rate", color=INK)
    right = _right_margin(figure, branches or curves)
    figure.subplots_adjust(
        left=0.07 if branches else 0.085, right=right, top=0.88, bottom=0.085, hspace=0.09, wspace=0.16
    )
    _write_title(figure, recipe, curves, right)
    return save_figure(figure, path)


def _curves(recipe: Recipe, run: RunFolder) -> list[Curve]:
    leaves = [stage for stage in recipe.in_order() if not recipe.children(stage)]
    found = []
    for stage in recipe.in_order():
        rows = read_steps(run.metrics(stage))
        if not rows:
            continue
        is_trunk = stage not in leaves or len(recipe.stages) == 1
        losses = _column(rows, "loss")
        found.append(
            Curve(
                stage=stage,
                colour=_TRUNK if is_trunk else _LEAVES[leaves.index(stage) % len(_LEAVES)],
                is_trunk=is_trunk,
                tokens=_column(rows, "tokens"),
                loss=losses,
                smooth=smoothed(losses, window=max(1, min(len(rows) // 15, 400))),
                lr=_column(rows, "lr"),
                validation=_weighted_validation(recipe, run, stage),
            )
        )
    return found


def _column(rows: list[StepRow], name: str) -> NDArray[np.float64]:
    return np.array([getattr(row, name) for row in rows], dtype=np.float64)


def _weighted_validation(recipe: Recipe, run: RunFolder, stage: str) -> list[tuple[int, float]]:
    """The validation loss at each point where all of the stage's measured sources were measured."""
    mixture = recipe.stages[stage].mixture
    points: dict[int, dict[str, float]] = {}
    for row in read_validation(run.validation(stage)):
        if row.source in mixture and np.isfinite(row.loss):
            points.setdefault(row.tokens, {})[row.source] = row.loss
    complete = max((len(losses) for losses in points.values()), default=0)
    return [
        (tokens, sum(mixture[s] * loss for s, loss in losses.items()) / sum(mixture[s] for s in losses))
        for tokens, losses in sorted(points.items())
        if len(losses) == complete  # a validation that is still running would be a mean over other sources
    ]


def _window_of_all(curves: list[Curve]) -> tuple[float, float]:
    last = max((float(curve.tokens[-1]) for curve in curves), default=1.0)
    return -0.02 * last, 1.02 * last


def _window_of_branches(branches: list[Curve]) -> tuple[float, float]:
    """From a little before the first branch to the end of the last."""
    first = min(float(curve.tokens[0]) for curve in branches)
    last = max(float(curve.tokens[-1]) for curve in branches)
    span = max(last - first, 1.0)
    return max(first - 0.12 * span, 0.0), last + 0.03 * span


def _right_margin(figure: Figure, labelled: list[Curve]) -> float:
    """The right edge of the frames, as a fraction of the figure, that leaves room for the longest label."""
    longest = max((len(curve.stage) for curve in labelled), default=0) + len("  0.000")
    # A letter of 10.5 points is about 0.08 inches wide.
    return max(0.6, 0.985 - (0.1 + 0.083 * longest) / figure.get_figwidth())


def _write_labels(whole: Axes, zoom: Axes, curves: list[Curve], branches: list[Curve]) -> None:
    if not curves:
        whole.text(0.5, 0.5, "no step has been trained yet", transform=whole.transAxes, ha="center", color=INK)
        return
    if not branches:
        label_at_right(whole, curves)
        return
    for curve in curves:
        if all(curve is not branch for branch in branches):
            label_above(whole, curve)
    label_at_right(zoom, branches)
    for axes, text in ((whole, "the whole lineage"), (zoom, "the branches")):
        axes.set_title(text, loc="left", fontsize=11, color=MUTED, pad=5)


def _write_title(figure: Figure, recipe: Recipe, curves: list[Curve], right: float) -> None:
    figure.text(0.07, 0.95, recipe.name, fontsize=15, fontweight="bold", color=INK)
    note = "light: single steps    heavy: running mean"
    if any(curve.validation for curve in curves):
        note += "    rings: validation, weighted by the mixture"
    figure.text(right, 0.95, note, fontsize=9.5, color=MUTED, ha="right")
