"""Gold answers: what may be one, and those that are worked solutions with the answer at their end."""

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
"""Of a float: with more it was computed, and its last digits are rounding."""

Compare = Callable[[str, str], bool]
"""Whether an answer is the gold one."""


def gold_of(row: Any, field: str, answer_after: str | None) -> str:
    """The gold answer of a row. Integers up to 64 bits and plain short floats are taken as their text.

    Args:
        answer_after: the answer is what follows the last of these.

    Raises:
        BadRow: there is no such field, or it is nothing that an answer can be compared with.
    """
    text = _as_text(field_of(row, field), field)
    if answer_after is not None:
        _, mark, text = text.rpartition(answer_after)
        if not mark:
            raise BadRow(f"field {field!r} does not hold answer_after = {answer_after!r}")
        text = text.strip()
    checked_text(text, field)
    final = final_answer(text)
    # a long worked solution is told apart from other long text, so that the way out can be said
    if not parses(text) and final is None:
        raise BadRow(f"field {field!r} is longer than {MAX_CHARACTERS} characters, which nothing is compared with")
    return text


def check_final(gold: str, field: str, compare: Compare) -> None:
    """Refuse a gold answer that is not equal to itself in a box, or to the answer it ends with: no response is right.

    Args:
        compare: grades the pairs that plain text and numbers do not decide.

    Raises:
        BadRow: it is worked out rather than an answer, or nothing that a box can hold.
    """
    final = final_answer(gold)
    if final is None:
        boxed = extract_answer(f"\\boxed{{{gold}}}")
        if parses(gold) and (boxed is None or not same_text(boxed, gold)):
            raise BadRow(f"field {field!r} is no answer that a box can hold: braces do not balance, or it says nothing")
        return
    if GSM8K_MARK not in gold and parses(gold):
        quick = decide_quickly(final, gold)
        if quick.is_right if quick is not None else compare(final, gold):
            return
    way_out = f"set answer_after: '{GSM8K_MARK}'" if GSM8K_MARK in gold else "name a field that holds the answer alone"
    raise BadRow(f"field {field!r} is a worked solution, to which its own answer is not equal; {way_out}")


def final_answer(gold: str) -> str | None:
    r"""The answer that a text ends with by its own word: after `####`, in the last `\boxed{}`, after `answer is`."""
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
        raise BadRow(f"field {field!r} is a number that is no plain short one; write it as text")
    if isinstance(value, dict | list) or value is None or isinstance(value, bool | int):
        raise BadRow(f"field {field!r} is {json_kind(value)}, not text")
    raise BadRow(f"field {field!r} is {shortened(type(value).__name__, 40)}, not text")
