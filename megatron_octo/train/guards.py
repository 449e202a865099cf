"""What stops a run, and what is flagged in one."""

import math
from collections import deque

from megatron_octo.recipe.train import Guards

MINIMUM_HISTORY = 16
"""Fewer losses than this say nothing about their spread."""


class SpikeDetector:
    """Flags a loss that lies many standard deviations above the recent ones."""

    def __init__(self, guards: Guards) -> None:
        self.limit = guards.spike_deviations
        self.recent: deque[float] = deque(maxlen=guards.spike_window)

    def observe(self, loss: float) -> float | None:
        """Take in a loss. Returns how many deviations above the mean it is if that is a spike, else None.

        A spike does not enter the window, so that it does not hide the next one.
        """
        deviations = self._deviations(loss)
        if deviations is not None and deviations > self.limit:
            return deviations
        self.recent.append(loss)
        return None

    def _deviations(self, loss: float) -> float | None:
        if len(self.recent) < MINIMUM_HISTORY:
            return None
        mean = math.fsum(self.recent) / len(self.recent)
        variance = math.fsum((x - mean) ** 2 for x in self.recent) / (len(self.recent) - 1)
        return (loss - mean) / math.sqrt(variance) if variance > 0 else None
