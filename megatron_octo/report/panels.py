"""Parts of the pictures: curves of stages on axes, their labels, and saving a figure."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.report.numbers import short_number
from megatron_octo.runtime.files import write_bytes_atomically

INK, MUTED = "#222222", "#666666"
_GRID, _SPINE = "#e6e6e6", "#999999"
_HALO = [withStroke(linewidth=3.0, foreground="white")]
_LABEL_GAP = 0.055
"""The least distance between two labels, as a fraction of the panel's height."""


@dataclass(frozen=True)
class Curve:
    """The series that are drawn for one stage."""

    stage: str
    colour: str
    is_trunk: bool
    """Whether other stages start from it."""
    tokens: NDArray[np.float64]
    """Tokens over the whole lineage, one value a step, as in the next three."""
    loss: NDArray[np.float64]
    smooth: NDArray[np.float64]
    """The running mean of the loss."""
    lr: NDArray[np.float64]
    validation: list[tuple[int, float]]
    """Lineage tokens and loss of each validation."""


def style(axes: Axes) -> None:
    """Give axes a light grid, and spines on two sides only."""
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SPINE)


def draw_loss(axes: Axes, curves: Sequence[Curve], window: tuple[float, float]) -> None:
    """Draw losses; the y range fits the running means within a window of lineage tokens.

    A single spike may leave the frame, and does not flatten everything else.
    """
    for curve in curves:
        axes.plot(curve.tokens, curve.loss, color=curve.colour, alpha=0.18, linewidth=0.7)
    for curve in curves:
        axes.plot(curve.tokens, curve.smooth, color=curve.colour, linewidth=2.0, solid_capstyle="round")
    for curve in curves:
        if curve.validation:
            tokens, losses = zip(*curve.validation)
            axes.plot(tokens, losses, "o", ms=5.5, mfc="white", mec=curve.colour, mew=1.5, zorder=4)
    shown = np.array([value for curve in curves for value in _values_within(curve, window)])
    if shown.size:
        low, high = float(shown.min()), float(shown.max())
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def draw_rate(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw learning rates. Branches often share one, so the first is drawn widest and all stay visible."""
    for order, curve in enumerate(curves):
        width = 1.8 if curve.is_trunk else 1.8 + 1.8 * (len(curves) - 1 - order)
        axes.plot(curve.tokens, curve.lr, color=curve.colour, linewidth=width, solid_capstyle="butt")
    highest = max((float(np.nanmax(curve.lr)) for curve in curves), default=0.0)
    axes.set_ylim(0.0, 1.12 * highest or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def label_at_right(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write names and last values at the right of the frame, level with the line ends, apart where those are close."""
    low, high = axes.get_ylim()
    ends = [(last_finite(curve.smooth), curve) for curve in curves]
    ends = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    gap = _LABEL_GAP * (high - low)
    heights: list[float] = []
    for value, _ in ends:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    # Labels were only moved up; moving all of them down by the mean centres them on their lines.
    push = float(np.mean([height - value for height, (value, _) in zip(heights, ends)])) if ends else 0.0
    for height, (value, curve) in zip(heights, ends):
        axes.annotate(
            f"{curve.stage}  {value:.3f}",
            (1.015, height - push),
            xycoords=("axes fraction", "data"),
            color=curve.colour,
            fontsize=10.5,
            va="center",
            annotation_clip=False,
        )


def label_above(axes: Axes, curve: Curve) -> None:
    """Write a stage's name and last value above the end of its line, from which branches continue."""
    value = last_finite(curve.smooth)
    if np.isfinite(value):
        axes.annotate(
            f"{curve.stage}  {value:.3f}",
            (float(curve.tokens[-1]), value),
            (-4, 16),
            textcoords="offset points",
            color=curve.colour,
            fontsize=10.5,
            ha="right",
            path_effects=_HALO,
        )


def write_tokens(axes: Axes, ticks: int) -> None:
    """Write tokens on the x axis as `1M` or `200B`."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(round(value)) if value > 0 else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def last_finite(values: NDArray[np.float64]) -> float:
    """The last finite value, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else float("nan")


def _values_within(curve: Curve, window: tuple[float, float]) -> list[float]:
    low, high = window
    inside = (curve.tokens >= low) & (curve.tokens <= high) & np.isfinite(curve.smooth)
    return [*curve.smooth[inside].tolist(), *(loss for tokens, loss in curve.validation if low <= tokens <= high)]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG, whole or not at all; returns its path."""
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png")
    write_bytes_atomically(path, picture.getvalue())
    return path
