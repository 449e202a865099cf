"""Results of grading: a decision about an answer, and the verdict on a whole response."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Form = Literal["strict", "lenient"]
"""Whether an unevaluated expression is right where the gold is a value. strict: it is wrong. lenient: it is right."""


class Decision(NamedTuple):
    """Whether an answer equals the gold, before the form is applied."""

    is_right: bool
    rule: str
    marks: tuple[str, ...] = ()

    def in_form(self, form: Form) -> "Decision":
        """This decision in a form: in the strict form, an answer with a mark is wrong."""
        return Decision(self.is_right and not (form == "strict" and self.marks), self.rule, self.marks)


@dataclass(frozen=True)
class Verdict:
    """The grade of a response."""

    is_right: bool
    answer: str | None
    """The answer found in the response; None if the response has no box that closes."""
    rule: str
    """The rule that decided: `text`, `number`, `value`, `no box`, `timed out`, ..."""
    timed_out: bool = False
    """Whether the comparison took too long. The response is then wrong."""
    marks: tuple[str, ...] = ()
    """`unevaluated`: equal in value, but not evaluated. `copied`: a formula of the question."""

    @property
    def has_answer(self) -> bool:
        """Whether the response has a box that closes."""
        return self.answer is not None
