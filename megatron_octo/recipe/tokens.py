"""Token budgets as people write them: `200B`, `20B`, `3M`, `1_000_000`."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SCALE = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
MOST_TOKENS = 10**15
_MOST_CHARACTERS = 40
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([KMBT]?)\s*$", re.IGNORECASE)


def parse_tokens(value: Any) -> int:
    """Read a token count: an integer, or text with a decimal K, M, B or T (powers of 1000).

    Raises:
        ValueError: it is something else, not a whole number of tokens, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a token count; write a whole number or e.g. 200B, 1.5M, 300K")
    text = str(value) if isinstance(value, str) or abs(value) <= MOST_TOKENS else ""
    match = _PATTERN.match(text) if len(text) <= _MOST_CHARACTERS else None
    if match is None:
        raise ValueError(f"{value!r} is not a token count; write a whole number or e.g. 200B, 1.5M, 300K")
    digits, unit = match.groups()
    whole, _, fraction = digits.replace("_", "").partition(".")
    scale = _SCALE[unit.upper()]
    numerator = int(whole + fraction) * scale
    denominator: int = 10 ** len(fraction)
    if numerator % denominator:
        raise ValueError(f"{value!r} is not a whole number of tokens")
    tokens = numerator // denominator
    if not 0 < tokens <= MOST_TOKENS:
        raise ValueError(f"{value!r} tokens; a budget must be above 0, and at most {format_tokens(MOST_TOKENS)}")
    return tokens


def format_tokens(tokens: int) -> str:
    """A token count in four digits and a unit: 200000000000 -> `200B`, 4194304 -> `4.194M`."""
    for unit in ("T", "B", "M", "K"):
        scale = _SCALE[unit]
        if tokens >= scale:
            return f"{tokens / scale:.4g}{unit}"
    return str(tokens)


Tokens = Annotated[int, BeforeValidator(parse_tokens)]
