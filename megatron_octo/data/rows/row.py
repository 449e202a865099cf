"""A row and the values of its fields."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_octo.reading.json_text import json_kind

Row = Mapping[str, Any]
MOST_ROW_BYTES = 16 << 20
"""Longest row that is read: a line, an item of a list, or the text of a document. A tokenizer takes up to 130 bytes of
memory for each byte of text."""
_SHOWN = 60


class BadRow(Exception):
    """A row that cannot be used. The message is the reason under which it is counted."""


def has_field(columns: Iterable[str], field: str) -> bool:
    """Whether rows with these columns can have a field. In `messages.1.content` only the first part is a column."""
    return field in columns or field.partition(".")[0] in columns


def columns_of(columns: Iterable[str], fields: Iterable[str]) -> list[str]:
    """The columns that contain these fields."""
    return list(dict.fromkeys(field if field in columns else field.partition(".")[0] for field in fields))


def field_of(row: Any, field: str) -> Any:
    """The value of a field. Dots step into nested values (`messages.1.content`), unless a column has that name.

    Raises:
        BadRow: the row is not an object, or lacks the field.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not an object")
    try:
        return row[field] if field in row else functools.reduce(_step, field.split("."), row)
    except (KeyError, IndexError, ValueError, TypeError):
        raise BadRow(f"no field {field!r}") from None


def text_of(row: Any, field: str) -> str:
    """The text of a field.

    Raises:
        BadRow: there is no such field, or its value is not text, empty, or not Unicode.
    """
    value = field_of(row, field)
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is {kind_of(value)}, not text")
    return checked_text(value, field)


def checked_text(text: str, field: str) -> str:
    """The text itself, after checking that it is not empty and is valid Unicode.

    Raises:
        BadRow: it is empty, or contains a lone surrogate.
    """
    if not text or text.isspace():
        raise BadRow(f"field {field!r} is empty")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow(f"field {field!r} holds half of a surrogate pair, so it is not Unicode") from None
    return text


def kind_of(value: Any) -> str:
    """The type of a value in JSON's terms; for types that only Parquet has (bytes, dates), the name of the type."""
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return json_kind(value)
    return type(value).__name__


def fields_seen(row: Any) -> str:
    """The names of a row's fields, for messages."""
    if not isinstance(row, Mapping):
        return kind_of(row)
    names = [str(name)[:_SHOWN] for name in row][:20]
    text = ", ".join(names) + (", ..." if len(row) > len(names) else "")
    return text.encode("utf-8", "backslashreplace").decode() or "nothing"


def _step(value: Any, part: str) -> Any:
    """One step of a dotted field: a key of an object, or an index of a list."""
    return value[int(part)] if isinstance(value, list) else value[part]
