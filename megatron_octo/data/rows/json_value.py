"""The JSON value of a row, read leniently, so that a strange value in an unused field does not spoil the row."""

import json
from typing import Any

import orjson

from megatron_octo.data.rows.containers import BOM
from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow

_LONGEST_INTEGER = 20
TOO_LONG = f"longer than {MOST_ROW_BYTES >> 20} MiB"


def row_or_reason(raw: bytes) -> Any:
    """The value of a line, or a BadRow with the reason why it has none."""
    try:
        return orjson.loads(raw)  # first, since this runs for every row of a corpus
    except orjson.JSONDecodeError:
        pass
    try:
        return _parse_leniently(raw)
    except BadRow as reason:
        return reason


def is_blank(raw: bytes) -> bool:
    """Whether a line contains nothing but spaces and a byte order mark."""
    return not raw or raw.isspace() or (raw.startswith(BOM) and not raw[len(BOM) :].strip())


def lenient_decoder() -> json.JSONDecoder:
    """Python's own decoder, which reads NaN and lone surrogates. Integers beyond 64 bits become floats."""
    return json.JSONDecoder(parse_int=_integer)


def _parse_leniently(raw: bytes) -> Any:
    # NaN, infinities, huge numbers and lone surrogates are common in fields that the recipe does not use; a field that
    # it uses is checked later
    try:
        text = raw.removeprefix(BOM).decode()
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    try:
        return lenient_decoder().decode(text)
    except RecursionError:
        raise BadRow("nested too deep") from None
    except ValueError:
        raise BadRow("not JSON") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)
