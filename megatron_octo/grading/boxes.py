r"""The answer of a response: what stands in its last box."""

import re
from collections import deque

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED_END = re.compile(r"\$|\\\)|\\\]|\n|\\boxed|\\fbox")
_PROSE = re.compile(r"[,;]?\s+(?:[a-zA-Z]{2,}|[aA])(?![a-zA-Z])|[.,;!?](?=\s|$)")
_LONGEST_UNBRACED = 300
_OPENINGS = 1000
"""Of so many last openings one has to close; beyond them is noise, and memory."""


def extract_answer(response: str) -> str | None:
    r"""What stands in the last box of a response that closes; None without one.

    A box is `\boxed{4}`, `\boxed {4}`, `\boxed 4`, `\fbox{4}` or `\framebox{4}`. Braces balance, and `\{` and `\}`
    are not counted. Without braces the answer ends with the formula or the line, or where prose begins. Time is
    linear in the response's length whatever it holds.
    """
    end = len(response)
    for opening in reversed(deque(_OPENING.finditer(response), maxlen=_OPENINGS)):
        start = opening.end()
        if response.startswith("{", start):
            if (answer := _braced(response, start + 1, end)) is not None:
                return answer
        elif answer := _unbraced(response[start : min(end, start + _LONGEST_UNBRACED)]):
            return answer
        end = opening.start()  # it never closes: nothing after its start closes an earlier one either
    return None


def _braced(text: str, start: int, end: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def _unbraced(text: str) -> str:
    if stop := _UNBRACED_END.search(text):
        text = text[: stop.start()]
    if prose := _PROSE.search(text):
        text = text[: prose.start()]
    return "" if text.startswith(("}", "]", ")")) else text.strip()


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` of a text that closes, every brace counted; None without one.

    This is the plain form alone, by which held-out problems are scored: see `extract_answer` for all forms. Time is
    linear in the text's length.
    """
    opening = r"\boxed{"
    end = len(text)
    while (start := text.rfind(opening, 0, end)) >= 0:
        depth = 1
        for i in range(start + len(opening), end):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + len(opening) : i]
        end = start
    return None
