"""Reads tokenizer.json with limits, and disables its truncation and padding."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from megatron_octo.data.rows.json_value import row_or_reason
from megatron_octo.data.rows.row import BadRow
from megatron_octo.errors import DataError, OctoError, first_line
from megatron_octo.reading.json_text import json_kind
from megatron_octo.reading.text import read_text, shown_path

MOST_BYTES = 256 << 20
"""The largest one we know, Gemma's, has 33 MB."""
MOST_ID = 2**31 - 2
"""Tokens are written as 32-bit integers."""


def read_tokenizer_file(path: Path, key: str) -> Tokenizer:
    """The tokenizer of a file, without truncation and padding.

    Args:
        key: the setting that names it, for messages.

    Raises:
        DataError: the file is missing, too large, not JSON, or not a tokenizer; or the tokenizer has no tokens.
    """
    text = read_text(path, DataError, MOST_BYTES)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{key}: {shown_path(path)} is not JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{key}: {shown_path(path)} holds {json_kind(value)}, not a tokenizer; copy it again")
    try:
        tokenizer = Tokenizer.from_str(text)
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many types; and a panic of its Rust code does not derive from Exception
        raise DataError(f"{key}: {path.name} is not a tokenizer ({first_line(error)}); copy it again") from None
    if not ids:
        raise DataError(f"{key}: {path.name} has no tokens; copy it again")
    if max(ids) > MOST_ID:
        raise DataError(
            f"{key}: {path.name} has a token with id {max(ids)}, and at most {MOST_ID} is allowed; copy it again"
        )
    return without_truncation(tokenizer)


def read_object_leniently(path: Path, key: str, error: type[OctoError] = DataError) -> dict[str, Any]:
    """A JSON object such as tokenizer_config.json, in which transformers writes 10^30 for "no limit".

    Raises:
        OctoError: of type `error`, if the file is missing, too large, or not a JSON object.
    """
    value = row_or_reason(read_text(path, error).encode())
    if not isinstance(value, dict):
        what = f"is {value}" if isinstance(value, BadRow) else f"holds {json_kind(value)}, not an object"
        raise error(f"{key}: {shown_path(path)} {what}; copy it again")
    return value


def without_truncation(tokenizer: Tokenizer) -> Tokenizer:
    """Disable truncation and padding. Returns the same tokenizer."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def asks_for_truncation(path: Path) -> bool:
    """Whether tokenizer.json asks for truncation. Earlier versions applied it, so that documents were cut."""
    status = path.stat()
    return _asks_for_truncation(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _asks_for_truncation(path: Path, modified: int, size: int) -> bool:
    del modified, size  # only keys of the cache
    try:
        value: Any = orjson.loads(read_text(path, DataError, MOST_BYTES))
    except orjson.JSONDecodeError as error:
        raise DataError(f"{shown_path(path)}: not JSON ({error}); run `octo data prepare` again") from None
    return isinstance(value, dict) and value.get("truncation") is not None
