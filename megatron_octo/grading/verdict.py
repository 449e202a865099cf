"""What grading says of a response."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["strict", "lenient"]
"""strict: an expression that nobody evaluated is wrong where the gold is a value. lenient: it is right, and marked."""


@dataclass(frozen=True)
class Verdict:
    """A response, graded."""

    right: bool
    answer: str | None
    """What was extracted; None where the response has no box that closes."""
    rule: str
    """Which rule decided: `text`, `number`, `value`, ...; docs/grading.md has the list."""
    timed_out: bool = False
    marks: tuple[str, ...] = ()
    """`unevaluated`: equal in value, but nobody evaluated it. `copied`: it stands in the question."""

    @property
    def has_answer(self) -> bool:
        """Whether the response has a box that closes."""
        return self.answer is not None
