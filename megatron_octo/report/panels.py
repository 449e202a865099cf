"""The drawing of stages on axes: lines, rings, labels at their ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.report.numbers import short_number

INK, MUTED = "#222222", "#666666"
_GRID, _SPINE = "#e6e6e6", "#999999"
_HALO = [withStroke(linewidth=3.0, foreground="white")]
_LABEL_GAP = 0.055  # of the height of the loss panel


@dataclass(frozen=True)
class Curve:
    """What is drawn of one stage."""

    stage: str
    colour: str
    is_trunk: bool
    """Whether other stages start from it."""
    tokens: NDArray[np.float64]
    """Over the whole lineage."""
    loss: NDArray[np.float64]
    smooth: NDArray[np.float64]
    lr: NDArray[np.float64]
    validation: list[tuple[int, float]]
    """Lineage tokens and the loss."""


def style(axes: Axes) -> None:
    """A light grid, and spines on two sides only."""
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_SPINE)


def draw_loss(axes: Axes, curves: Sequence[Curve], window: tuple[float, float]) -> None:
    """Loss of the curves within a window of lineage tokens, fitted to the running means.

    A single spike may leave the frame; it does not flatten everything else.
    """
    for curve in curves:
        axes.plot(curve.tokens, curve.loss, color=curve.colour, alpha=0.18, linewidth=0.7)
    for curve in curves:
        axes.plot(curve.tokens, curve.smooth, color=curve.colour, linewidth=2.0, solid_capstyle="round")
    for curve in curves:
        if curve.validation:
            tokens, losses = zip(*curve.validation)
            axes.plot(tokens, losses, "o", ms=5.5, mfc="white", mec=curve.colour, mew=1.5, zorder=4)
    seen = np.array([value for curve in curves for value in _seen(curve, window)])
    if seen.size:
        low, high = float(seen.min()), float(seen.max())
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def draw_rate(axes: Axes, curves: Sequence[Curve]) -> None:
    """Learning rate of the curves. Branches often share one: the first is drawn widest, so that all can be seen."""
    for order, curve in enumerate(curves):
        width = 1.8 if curve.is_trunk else 1.8 + 1.8 * (len(curves) - 1 - order)
        axes.plot(curve.tokens, curve.lr, color=curve.colour, linewidth=width, solid_capstyle="butt")
    highest = max((float(np.nanmax(curve.lr)) for curve in curves), default=0.0)
    axes.set_ylim(0.0, 1.12 * highest or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))


def label_at_right(axes: Axes, curves: Sequence[Curve]) -> None:
    """Names and last values beside the frame, level with the line ends, and moved apart where those are near."""
    low, high = axes.get_ylim()
    ends = [(last_finite(curve.smooth), curve) for curve in curves]
    ends = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    gap = _LABEL_GAP * (high - low)
    heights: list[float] = []
    for value, _ in ends:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    # a stack that was pushed up is let down again by the mean of what it was pushed, to stand around its lines
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
    """Name and last value above the end of a line that others go on from."""
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
    """Tokens on the x axis as `1M` or `200B`."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tokens(round(value)) if value > 0 else "0"))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))


def last_finite(values: NDArray[np.float64]) -> float:
    """The last finite value, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else float("nan")


def _seen(curve: Curve, window: tuple[float, float]) -> list[float]:
    low, high = window
    inside = (curve.tokens >= low) & (curve.tokens <= high) & np.isfinite(curve.smooth)
    return [*curve.smooth[inside].tolist(), *(loss for tokens, loss in curve.validation if low <= tokens <= high)]
