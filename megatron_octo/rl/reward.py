r"""Is the answer right: the last `\boxed{}`, by its text, then by math-verify.

Nothing that a model writes is executed. math-verify's second way of reading (`ExprExtractionConfig`, which hands text
to sympy's `parse_expr`, and so to `eval`) is left out; its LaTeX grammar only builds expressions.
"""

import re
from dataclasses import dataclass
from typing import Any

from megatron_octo.data.answers import last_boxed

MAX_CHARACTERS = 300
"""Longest boxed answer that is looked at beyond its text: MATH8K's longest is shorter by half."""
_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)|\\[,;:! ]|\\left\b|\\right\b")
_ENDLESS = re.compile(r"\b(?:oo|zoo|nan)\b")
_SPELLINGS = (("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\$", ""), ("$", ""), ("^{\\circ}", ""), ("^\\circ", ""))


@dataclass(frozen=True)
class Score:
    """A response, graded."""

    reward: float
    is_right: bool
    has_answer: bool
    r"""Whether it holds a `\boxed{}` that closes."""
    timed_out: bool = False


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are spelled alike, but for spaces, dollars, degrees and the size of fractions.

    No answer is like no other.
    """
    return bool(plain := _plain(answer)) and plain == _plain(gold)


def _plain(text: str) -> str:
    text = _SPACES.sub("", " ".join(text.split()))  # one space: between two digits it stays
    for spelling, plain in _SPELLINGS:
        text = text.replace(spelling, plain)
    return text.rstrip(".")


def is_right(answer: str, gold: str) -> bool:
    """Whether an answer is the gold one, by text or by value. May take long, or raise: see `graders`.

    Args:
        answer: what stands in the box.
        gold: LaTeX, without dollars or with.
    """
    if same_text(answer, gold):
        return True
    if not answer.strip() or max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    from math_verify import LatexExtractionConfig, parse, verify

    # the time limit is the process's own: math-verify's needs signals, and stops no C code
    latex = [LatexExtractionConfig(boxed_match_priority=0)]
    found, wanted = (
        parse(f"\\boxed{{{text}}}", latex, parsing_timeout=None) for text in (answer, gold.strip().strip("$"))
    )
    if _is_endless(found) and not _is_endless(wanted):
        return False  # math-verify 0.9 takes infinity to the power of infinity for 3/7, and for ends of intervals
    return bool(found and wanted and verify(wanted, found, timeout_seconds=None))


def _is_endless(parsed: list[Any]) -> bool:
    """Whether an expression as sympy has it holds an infinity, or what comes of dividing by zero."""
    return any(_ENDLESS.search(str(expression)) for expression in parsed if not isinstance(expression, str))


def parses(gold: str) -> bool:
    """Whether a gold answer is one that a response can be compared with."""
    return bool(gold.strip()) and len(gold) <= MAX_CHARACTERS


def boxed(response: str) -> str | None:
    r"""The answer of a response: what stands in its last `\boxed{}`."""
    return last_boxed(response)
