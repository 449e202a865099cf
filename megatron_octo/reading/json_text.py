"""JSON, with limits on size, depth and numbers."""

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from megatron_octo.errors import OctoError
from megatron_octo.reading.text import MOST_BYTES, read_text
from megatron_octo.reading.values import check_value

M = TypeVar("M", bound=BaseModel)
_MOST_DIGITS = 20
"""Digits of the largest 64-bit integer, and its sign."""
_SHOWN = 200


def parse_json(text: str, where: str, error: type[OctoError], way_out: str = "copy it again") -> Any:
    """The value of a JSON text. NaN and infinities are refused, since JSON has none.

    Args:
        where: what the text is, for messages.

    Raises:
        OctoError: of type `error`, if it is not JSON or beyond the limits of `check_value`.
    """
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_constant)
    except RecursionError:
        raise error(f"{where}: nested too deep; {way_out}") from None
    except ValueError as problem:
        raise error(f"{where}: not JSON ({shortened(str(problem))}); {way_out}") from None
    check_value(value, where, error)
    return value


def read_json(path: Path, error: type[OctoError], way_out: str = "copy it again", most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON file.

    Raises:
        OctoError: of type `error`; see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, error, most_bytes), str(path), error, way_out)


def read_json_object(
    path: Path, error: type[OctoError], way_out: str = "copy it again", needs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The object of a JSON file.

    Args:
        needs: keys that it must have.

    Raises:
        OctoError: of type `error`, if it is not an object, or lacks a key.
    """
    value = read_json(path, error, way_out)
    if not isinstance(value, dict):
        raise error(f"{path}: holds {json_kind(value)} where an object is expected; {way_out}")
    if missing := [key for key in needs if key not in value]:
        raise error(f"{path}: no key {', '.join(missing)}; {way_out}")
    return value


def read_record(path: Path, model: type[M], error: type[OctoError], way_out: str) -> M:
    """A JSON file as a pydantic model.

    Raises:
        OctoError: of type `error`, naming the first field that does not fit.
    """
    return validated(read_json_object(path, error, way_out), model, str(path), error, way_out)


def validated(value: Any, model: type[M], where: str, error: type[OctoError], way_out: str) -> M:
    """A plain value as a pydantic model.

    Raises:
        OctoError: of type `error`, naming the first field that does not fit, and its value.
    """
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise error(f"{where}: {key} = {shortened(repr(first['input']))}: {first['msg']}; {way_out}") from None


def json_kind(value: Any) -> str:
    """The type of a JSON value in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def shortened(text: str, most: int = _SHOWN) -> str:
    """A text for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{shortened(digits, 40)} is beyond the largest number")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")
