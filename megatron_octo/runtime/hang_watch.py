"""A watchdog that ends a hanging rank after writing the stacks of its threads.

The timer is `faulthandler`'s, a C thread that runs even if Python or a collective is stuck.
"""

import faulthandler
import time
from collections import deque

from megatron_octo.recipe.train import Guards
from megatron_octo.runtime.failures import open_stacks

_RECENT = 64
_LONGEST = 1e7
"""Seconds; the type of faulthandler's timer holds no more."""
_OTHER_WORK = 10.0
"""The limit of the first step, a save, a validation or a load, in multiples of `hang_seconds`."""


class HangWatch:
    """The watchdog of one rank. Each limit holds until the next call."""

    def __init__(self, guards: Guards, rank: int) -> None:
        self.guards = guards
        self.file = open_stacks(rank)
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.began: float | None = None

    @property
    def step_limit(self) -> float:
        """The limit of the next step in seconds."""
        if not self.recent:
            return self.other_limit
        return max(self.guards.hang_seconds, self.guards.hang_factor * max(self.recent))

    @property
    def other_limit(self) -> float:
        """The limit of anything else in seconds."""
        return _OTHER_WORK * self.guards.hang_seconds

    def begin_step(self) -> None:
        """Start the limit of a step."""
        self.began = time.monotonic()
        self._arm(self.step_limit)

    def end_step(self) -> None:
        """Record the step's time, and start the longer limit of what follows (a save, a validation)."""
        if self.began is not None:
            self.recent.append(time.monotonic() - self.began)
        self.other_work()

    def other_work(self) -> None:
        """Start the limit of anything that is not a step."""
        self.began = None
        self._arm(self.other_limit)

    def stop(self) -> None:
        """End the current limit."""
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(min(seconds, _LONGEST), exit=True, file=self.file)
