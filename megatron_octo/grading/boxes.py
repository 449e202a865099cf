r"""The answer of a response: the content of its last box."""

import re
from collections import deque

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED_END = re.compile(r"\$|\\\)|\\\]|\n|\\boxed|\\fbox")
_PROSE = re.compile(r"[,;]?\s+(?:[a-zA-Z]{2,}|[aA])(?![a-zA-Z])|[.,;!?](?=\s|$)")
_LONGEST_UNBRACED = 300
_OPENINGS = 1000
"""How many openings are looked at, from the end. A response with more that do not close is noise."""


def extract_answer(response: str) -> str | None:
    r"""The content of the last box that closes; None if there is none.

    A box is `\boxed{4}`, `\boxed {4}`, `\boxed 4`, `\fbox{4}` or `\framebox{4}`. Braces must balance; `\{` and `\}` do
    not count. Without braces, the answer ends with the formula or the line, or where prose begins. Time is linear in
    the response's length, for any response.
    """
    end = len(response)
    for opening in reversed(deque(_OPENING.finditer(response), maxlen=_OPENINGS)):
        start = opening.end()
        if response.startswith("{", start):
            if (answer := _braced(response, start + 1, end)) is not None:
                return answer
        elif answer := _unbraced(response[start : min(end, start + _LONGEST_UNBRACED)]):
            return answer
        end = opening.start()  # it does not close, so no brace after its start closes an earlier one either
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
    r"""The content of the last `\boxed{...}` that closes, where every brace counts; None if there is none.

    Held-out problems are scored by this plain form alone; `extract_answer` takes all forms. Time is linear in the
    text's length.
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
