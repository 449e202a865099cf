"""Checks that every token of a tokenizer has a row in the model's embedding. None of the tokenizer's code is run."""

import re
from pathlib import Path
from typing import Any

import orjson

from megatron_octo.errors import ModelError
from megatron_octo.reading.json_text import json_kind, shortened
from megatron_octo.reading.text import read_text
from megatron_octo.runtime.links import check_inside

TOKENIZER, CONFIG, SENTENCEPIECE = "tokenizer.json", "tokenizer_config.json", "tokenizer.model"
_TABLES = ("vocab.json", "added_tokens.json")
_MOST_BYTES = 64 << 20
_NUMBER = re.compile(r"^[0-9]{1,18}$")
_PIECE = 1
"""The field number of a piece in sentencepiece's ModelProto."""


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Refuse a tokenizer with tokens beyond the embedding, or one that needs code of its own.

    Args:
        folder: the folder of its files; one without any is accepted.
        vocab_size: rows of the model's embedding.

    Raises:
        ModelError: a token beyond the embedding, damaged files, `auto_map`, or a link out of the folder.
    """
    for name in (TOKENIZER, CONFIG, SENTENCEPIECE, *_TABLES):
        check_inside(folder, folder / name, ModelError)
    if "auto_map" in _object(folder / CONFIG):
        raise ModelError(
            f"{folder / CONFIG}: auto_map: this tokenizer needs its author's code, which is neither run nor copied; "
            f"if {TOKENIZER} is enough, remove the key; otherwise give another tokenizer"
        )
    number, name = max(_tokens(folder), default=(-1, ""))
    if number >= vocab_size:
        raise ModelError(
            f"{folder}: its tokenizer has token {number} ({shortened(name, 60)!r}), and the model's embedding has "
            f"{vocab_size} rows (vocab_size); give the model's own tokenizer, or one with fewer tokens"
        )


def _tokens(folder: Path) -> list[tuple[int, str]]:
    """Ids and names of the tokens in all files that number them; for an ordered table, only the last token."""
    whole = _object(folder / TOKENIZER)
    if (folder / TOKENIZER).is_file() and not isinstance(whole.get("model"), dict):
        raise ModelError(
            f"{folder / TOKENIZER}: not a tokenizer (model is {json_kind(whole.get('model'))}, not an object); "
            "copy it again"
        )
    vocabulary = _part(whole.get("model"), "vocab", folder / TOKENIZER)
    found: list[tuple[Any, Any]] = []
    if isinstance(vocabulary, dict):
        found += [(number, name) for name, number in vocabulary.items()]
    elif isinstance(vocabulary, list) and vocabulary:  # Unigram: an ordered list of (piece, score)
        found.append((len(vocabulary) - 1, str(vocabulary[-1])))
    added = whole.get("added_tokens") or []
    if not isinstance(added, list):
        raise ModelError(f"{folder / TOKENIZER}: added_tokens is {json_kind(added)}, not a list; copy it again")
    for token in added:
        found.append((_part(token, "id", folder / TOKENIZER), _part(token, "content", folder / TOKENIZER)))
    numbered = _object(folder / CONFIG).get("added_tokens_decoder") or {}
    if not isinstance(numbered, dict) or not all(_NUMBER.match(number) for number in numbered):
        raise ModelError(f"{folder / CONFIG}: added_tokens_decoder is not a mapping from numbers; copy it again")
    found += [(int(number), str(_part(token, "content", folder / CONFIG))) for number, token in numbered.items()]
    for name in _TABLES:
        found += [(number, token) for token, number in _object(folder / name).items()]
    if not whole and (folder / SENTENCEPIECE).is_file():
        found.append((_count_pieces(folder / SENTENCEPIECE) - 1, "the last piece"))
    if wrong := next((pair for pair in found if type(pair[0]) is not int or not isinstance(pair[1], str)), None):
        raise ModelError(f"{folder}: its tokenizer numbers a token {shortened(repr(wrong))}; copy its files again")
    return found


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no file. Read by orjson, since transformers writes 10^30 for "no limit"."""
    if not path.is_file():
        return {}
    try:
        value = orjson.loads(read_text(path, ModelError, _MOST_BYTES))
    except orjson.JSONDecodeError as problem:
        raise ModelError(f"{path}: not JSON ({shortened(str(problem))}); copy it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {json_kind(value)} where an object is expected; copy it again")
    return value


def _part(value: Any, key: str, path: Path) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: {shortened(repr(value))} where an object is expected; copy it again")
    return value.get(key)


def _count_pieces(path: Path) -> int:
    """Number of pieces of a sentencepiece model, which is protobuf; only its outermost fields are read.

    Raises:
        ModelError: it is too large, or not a sentencepiece model.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ModelError(
            f"{path}: {path.stat().st_size:,} bytes, and at most {_MOST_BYTES:,} are read; is it a tokenizer?"
        )
    data, at, count = path.read_bytes(), 0, 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            if tag & 7 != 2:  # a length and as many bytes: the only type that the outermost fields have
                raise ValueError(f"field {tag >> 3} of type {tag & 7}")
            length, at = _varint(data, at)
            at += length
            count += tag >> 3 == _PIECE
        if at != len(data):
            raise ValueError("cut short")
    except (ValueError, IndexError) as problem:
        raise ModelError(f"{path}: not a sentencepiece model ({problem}); copy it again") from None
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")
