"""A running mean for noisy curves."""

import numpy as np
from numpy.typing import NDArray


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred running mean of `values` over about `window` points; shape unchanged.

    Towards the start the window shrinks to both sides, so a steep beginning is not flattened. At the end it
    only loses its right half, so the last value, which a label quotes, is not that of a single step. Values
    that are not finite are left out of the mean; a window without any finite value gives NaN.
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
