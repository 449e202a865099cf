"""Quick comparison by text and plain numbers: microseconds, in any process, without sympy."""

import math
import re

from megatron_octo.grading.notation import normalized
from megatron_octo.grading.numbers import is_unevaluated_division, read_number
from megatron_octo.grading.units import split_unit
from megatron_octo.grading.verdict import Decision

MAX_CHARACTERS = 300
"""Longer answers are compared as text alone. The longest one in MATH8K has half as many."""
_LONGEST_QUESTION = 20_000
_FORMULA = re.compile(r"(?<!\\)\$\$?(.+?)\$\$?|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_OPERATION = re.compile(r"[+*/^!|]|(?<=.)-|\\[a-zA-Z]|\(")


def parses(gold: str) -> bool:
    """Whether a gold answer can be compared with answers: neither empty nor longer than MAX_CHARACTERS."""
    return bool(gold.strip()) and len(gold) <= MAX_CHARACTERS


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers have the same spelling in one notation. Empty ones never do; long ones must be identical."""
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return len(answer) == len(gold) and answer == gold
    return bool(text := normalized(answer)) and text == normalized(gold)


def decide_quickly(answer: str, gold: str) -> Decision | None:
    """The decision by text and plain numbers, in microseconds; None if it takes `decide`."""
    if same_text(answer, gold):
        return Decision(True, "text")
    if not answer.strip() or max(len(answer), len(gold)) > MAX_CHARACTERS:
        return Decision(False, "length" if answer.strip() else "empty")
    text, wanted = normalized(answer), normalized(gold)
    if not text or not wanted:
        return Decision(False, "empty")
    a, b = read_number(text), read_number(wanted)
    if a is None or b is None:
        return None
    if not a.equals(b) and "," in text and "," in wanted:
        return None  # 100,200 may be a list
    is_unevaluated = is_unevaluated_division(text) and not is_unevaluated_division(wanted)
    return Decision(a.equals(b), "number", ("unevaluated",) if is_unevaluated and a.equals(b) else ())


def is_copied(answer: str, gold: str, question: str) -> bool:
    """Whether an answer is a formula of the question, and neither the gold's text nor a plain number."""
    text = normalized(answer)
    if not _OPERATION.search(text) or same_text(answer, gold) or _is_reduced(split_unit(text).value):
        return False
    formulas = (next(filter(None, found.groups())) for found in _FORMULA.finditer(question[:_LONGEST_QUESTION]))
    return any(
        text in (normalized(f), *map(normalized, f.split("="))) for f in formulas if len(f) <= 2 * MAX_CHARACTERS
    )


def _is_reduced(text: str) -> bool:
    """Whether text is a plain number in lowest terms, as people write results.

    36/54 is not: whoever writes it has copied it. Nor is a repeating decimal.
    """
    number = read_number(text)
    found = re.fullmatch(r"-?\\frac\{(\d+)\}\{(\d+)\}|-?(\d+)/(\d+)", text)
    if number is None or (found and math.gcd(int(found[1] or found[3]), int(found[2] or found[4])) > 1):
        return False
    return "\\overline" not in text
