"""Numbers as the reports show them: short, and smoothed for curves."""

import numpy as np
from numpy.typing import NDArray


def short_number(value: float) -> str:
    """Write 0.00005 as 5e-5."""
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def short_duration(seconds: float) -> str:
    """Write 312.5 as 5m12s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean of `values` over about `window` points; shape unchanged.

    Near the start the window shrinks on both sides, so that a steep beginning is not flattened. Near the end only
    its right half shrinks, so that the last value, which a label shows, is not that of a single step. Values that
    are not finite are left out of the mean; a window without any finite value gives NaN.
    """
    half = max(window, 1) // 2
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    reach = np.minimum(half, index)
    low, high = index - reach, np.minimum(index + reach + 1, len(values))
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    mean = np.full(len(values), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
