"""Ends a rank that hangs, after it has written the stacks of its threads.

The clock is `faulthandler`'s: a thread in C, which runs whatever Python or a collective is stuck in.
"""

import faulthandler
import time
from collections import deque

from megatron_octo.recipe.train import Guards
from megatron_octo.runtime.failures import open_stacks

_RECENT = 64
_LONGEST = 1e7
"""Seconds; faulthandler's clock takes no more than fits its type."""
_OTHER_WORK = 10.0
"""How many times `hang_seconds` the first step, a save, a validation or a load may take."""


class HangWatch:
    """One for each rank. A limit holds until the next call."""

    def __init__(self, guards: Guards, rank: int) -> None:
        self.guards = guards
        self.file = open_stacks(rank)
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.began: float | None = None

    @property
    def step_limit(self) -> float:
        """Seconds that the next step may take."""
        if not self.recent:
            return self.other_limit
        return max(self.guards.hang_seconds, self.guards.hang_factor * max(self.recent))

    @property
    def other_limit(self) -> float:
        """Seconds that anything else may take."""
        return _OTHER_WORK * self.guards.hang_seconds

    def begin_step(self) -> None:
        """A step begins."""
        self.began = time.monotonic()
        self._arm(self.step_limit)

    def end_step(self) -> None:
        """The step is done; what follows (a save, a validation) has the longer limit."""
        if self.began is not None:
            self.recent.append(time.monotonic() - self.began)
        self.other_work()

    def other_work(self) -> None:
        """Something begins that is not a step."""
        self.began = None
        self._arm(self.other_limit)

    def stop(self) -> None:
        """No limit any more."""
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(min(seconds, _LONGEST), exit=True, file=self.file)
