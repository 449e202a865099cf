"""Gold answers: read from rows of a file, and refused where no answer in a box could equal them."""

import re
from collections.abc import Callable
from typing import Any

from megatron_octo.data.rows.row import BadRow, checked_text, field_of
from megatron_octo.grading.boxes import extract_answer, last_boxed
from megatron_octo.grading.compare import MAX_CHARACTERS, decide_quickly, parses, same_text
from megatron_octo.reading.json_text import json_kind, shortened

GSM8K_MARK = "####"
_STATED = re.compile(r"\banswer\s*(?:is\s*:?|:)\s*(\S.*?)\.?\s*$", re.IGNORECASE | re.DOTALL)
_LARGEST_INTEGER = 2**63 - 1
_MOST_DIGITS = 12
"""Most digits of a float. One with more was computed, and its last digits are rounding errors."""

Compare = Callable[[str, str], bool]
"""Whether an answer equals the gold answer."""


def read_gold(row: Any, field: str, answer_after: str | None) -> str:
    """The gold answer of a row, as text. Integers of up to 64 bits and short floats are converted.

    Args:
        answer_after: the answer is the text after the last occurrence of this.

    Raises:
        BadRow: there is no such field, or an answer cannot be compared with its content.
    """
    text = _as_text(field_of(row, field), field)
    if answer_after is not None:
        _, mark, text = text.rpartition(answer_after)
        if not mark:
            raise BadRow(f"field {field!r} does not hold answer_after = {answer_after!r}")
        text = text.strip()
    checked_text(text, field)
    final = final_answer(text)
    # a long worked solution passes here; `check_gold` refuses it with a message that says the way out
    if not parses(text) and final is None:
        raise BadRow(f"field {field!r} is longer than {MAX_CHARACTERS} characters, the most that are compared")
    return text


def check_gold(gold: str, field: str, compare: Compare) -> None:
    """Refuse a gold answer that does not equal itself in a box, or the answer it ends with: no response would be right.

    Args:
        compare: decides the pairs that plain text and numbers do not.

    Raises:
        BadRow: the gold is a worked solution and not an answer, or a box cannot hold it.
    """
    final = final_answer(gold)
    if final is None:
        boxed = extract_answer(f"\\boxed{{{gold}}}")
        if parses(gold) and (boxed is None or not same_text(boxed, gold)):
            raise BadRow(f"field {field!r} cannot be an answer in a box: its braces do not balance, or it is empty")
        return
    if GSM8K_MARK not in gold and parses(gold):
        quick = decide_quickly(final, gold)
        if quick.is_right if quick is not None else compare(final, gold):
            return
    way_out = f"set answer_after: '{GSM8K_MARK}'" if GSM8K_MARK in gold else "name a field that holds the answer alone"
    raise BadRow(f"field {field!r} is a worked solution, which does not equal its own answer; {way_out}")


def final_answer(gold: str) -> str | None:
    r"""The answer that a worked solution ends with: after `####`, in the last `\boxed{}`, or after `answer is`."""
    if GSM8K_MARK in gold:
        return gold.rpartition(GSM8K_MARK)[2].strip()
    if (boxed := last_boxed(gold)) is not None:
        return boxed
    stated = _STATED.search(gold[-4 * MAX_CHARACTERS :])
    return stated[1] if stated else None


def _as_text(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int and abs(value) <= _LARGEST_INTEGER:
        return str(value)
    if type(value) is float:
        text = repr(value).removesuffix(".0")
        if text.lstrip("-").replace(".", "", 1).isdigit() and len(text.lstrip("-").replace(".", "")) <= _MOST_DIGITS:
            return text
        raise BadRow(f"field {field!r} is a number with too many digits; write it as text")
    if isinstance(value, dict | list) or value is None or isinstance(value, bool | int):
        raise BadRow(f"field {field!r} is {json_kind(value)}, not text")
    raise BadRow(f"field {field!r} is {shortened(type(value).__name__, 40)}, not text")
