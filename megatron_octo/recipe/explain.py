"""pydantic's errors in the user's words: keys as they are written in a recipe, one problem for each wrong value."""

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from megatron_octo.errors import did_you_mean
from megatron_octo.reading.json_text import shortened
from megatron_octo.recipe.recipe import Recipe

_NOT_A_MAPPING = ("model_type", "model_attributes_type", "dict_type")


def explained(errors: Sequence[ErrorDetails], tree: Any) -> list[str]:
    """One line for each wrong value of a recipe.

    A value that could be of several types gives pydantic an error for each of them; here they make one line.

    Args:
        errors: as pydantic found them.
        tree: the recipe that it read.
    """
    by_place: dict[tuple[tuple[str, ...], bool], list[ErrorDetails]] = {}
    for error in errors:
        is_about_key = error["loc"][-1:] == ("[key]",)
        by_place.setdefault((tuple(_walk(error["loc"])[0]), is_about_key), []).append(error)
    return [_explain(key, is_about_key, same, tree) for (key, is_about_key), same in by_place.items()]


def _explain(key: tuple[str, ...], is_about_key: bool, errors: list[ErrorDetails], tree: Any) -> str:
    dotted, first = ".".join(key), errors[0]
    match first["type"]:
        case "extra_forbidden":
            known = _fields_beside(first["loc"])
            hint = did_you_mean(key[-1], known, f"known here: {', '.join(known)}")
            return f"{dotted} = {_shown(first['input'])}: there is no such key; {hint}"
        case "missing":
            return f"{dotted}: this key is missing; add it"
        case "union_tag_not_found":
            return f"{dotted}.kind: this key is missing; add it"
        case "union_tag_invalid":
            kind, kinds = first["input"]["kind"], first["ctx"]["expected_tags"]
            return f"{dotted}.kind = {_shown(kind)}: there is no such kind; known: {kinds}"
        case kind if kind in _NOT_A_MAPPING and len(errors) == 1:
            return f"{dotted} = {_shown(first['input'])}: a mapping of keys is expected here"
    value = first["input"] if is_about_key else _value_at(tree, key, first["input"])
    return f"{dotted} = {_shown(value)}: {shortened(_said(errors), 400)}"


def _said(errors: list[ErrorDetails]) -> str:
    """Each message once; after the first one without the words that all begin with."""
    first, *others = dict.fromkeys(error["msg"].removeprefix("Value error, ") for error in errors)
    return " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])


def _shown(value: Any) -> str:
    return shortened(repr(value), 120)


def _value_at(tree: Any, key: Sequence[str], otherwise: Any) -> Any:
    for part in key:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and part.isdecimal() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return otherwise  # below a value that the recipe writes in a short form
    return tree


def _fields_beside(location: Sequence[str | int]) -> list[str]:
    """The fields of the section that the last part of a location is in."""
    section = _walk(location)[1]
    return sorted(section.model_fields) if section is not None else []


def _walk(location: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """Follow a pydantic location through the sections.

    Returns:
        The user's key, without the parts that say which member of a union was tried, or that a key itself is meant;
        and the section that the key's last part is in.
    """
    key: list[str] = []
    section: type[BaseModel] | None = None
    kind: Any = Recipe
    for part in location:
        members = _members(kind)
        if len(members) > 1:
            chosen = [member for member in members if _has_kind(member, part)]
            if not chosen:  # a union of plain types; what follows only says which of them refused the value
                break
            kind = chosen[0]
            continue
        if part == "[key]":
            break
        key.append(str(part))
        section, kind = _step(members[0] if members else None, part)
    return key, section


def _step(kind: Any, part: str | int) -> tuple[type[BaseModel] | None, Any]:
    """The section that `part` is a key of, if any, and the type of its value."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        return kind, field.annotation if field is not None else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return None, arguments[1]
    if get_origin(kind) is tuple and Ellipsis not in arguments and isinstance(part, int) and part < len(arguments):
        return None, arguments[part]
    return None, arguments[0] if arguments else None


def _members(kind: Any) -> list[Any]:
    """The types that a value may have, without None."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for part in get_args(kind) for member in _members(part) if member is not type(None)]
    return [kind]


def _has_kind(member: Any, tag: str | int) -> bool:
    """Whether a member of a union is the section with this `kind`."""
    field = member.model_fields.get("kind") if isinstance(member, type) and issubclass(member, BaseModel) else None
    return field is not None and tag in get_args(field.annotation)
