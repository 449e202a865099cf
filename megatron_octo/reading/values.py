"""Limits on plain values, as JSON and YAML give them."""

import math
from typing import Any

from megatron_octo.errors import OctoError

MOST_DEPTH = 64
MOST_VALUES = 5_000_000
LARGEST_INTEGER = 2**63 - 1


def check_value(value: Any, where: str, error: type[OctoError], most_values: int = MOST_VALUES) -> None:
    """Refuse values that no file of ours contains, and that would break code further down.

    Raises:
        OctoError: of type `error`, for nesting deeper than MOST_DEPTH, more than `most_values` values, an integer
            beyond 64 bits, a number that is not finite, a NUL, or text that is not Unicode (a lone surrogate).
    """
    count = 0
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        item, depth = left.pop()
        count += 1
        if depth > MOST_DEPTH:
            raise error(f"{where}: nested more than {MOST_DEPTH} deep; flatten it")
        if count > most_values:
            raise error(f"{where}: more than {most_values:,} values; is it the right file?")
        if isinstance(item, str):
            _check_text(item, where, error)
        elif isinstance(item, bool):
            continue
        elif isinstance(item, int):
            if not -LARGEST_INTEGER <= item <= LARGEST_INTEGER:
                raise error(f"{where}: an integer of {item.bit_length()} bits; at most 64 bits are read")
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise error(f"{where}: {item} is not a finite number; write one")
        elif isinstance(item, dict):
            left += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set):
            left += [(part, depth + 1) for part in item]


def _check_text(text: str, where: str, error: type[OctoError]) -> None:
    if "\0" in text:
        raise error(f"{where}: text with a NUL character; take it out")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(
            f"{where}: text that is not Unicode (a lone surrogate, {text[problem.start]!a}); correct it"
        ) from None
