"""From a file or a shipped name, with dotted overrides, to a checked recipe."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from megatron_octo.errors import RecipeError
from megatron_octo.reading.json_text import shortened
from megatron_octo.reading.text import read_text, shown_path
from megatron_octo.reading.values import check_value
from megatron_octo.reading.yaml_text import MOST_CHARACTERS, parse_yaml
from megatron_octo.recipe.check import problems_of
from megatron_octo.recipe.recipe import Recipe

_LIBRARY = resources.files("megatron_octo.recipe") / "library"
_MOST_BYTES = 4 * MOST_CHARACTERS
_MOST_EXTENDS = 16
_MOST_SHOWN = 40


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _LIBRARY.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML file by path, apply `key.sub=value` overrides, and check it.

    Raises:
        RecipeError: with every problem found, each with its key, its value and the way out.
    """
    tree = _read(name_or_path, via=())
    for override in overrides:
        _apply(tree, override)
    return build_recipe(tree, origin=name_or_path)


def build_recipe(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Check a recipe given as plain dictionaries.

    Raises:
        RecipeError: with every problem found.
    """
    check_value(tree, shortened(origin), RecipeError)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_listed(origin, [_explain(e) for e in error.errors(include_url=False)])) from None
    if problems := problems_of(recipe):
        raise RecipeError(_listed(origin, [str(p) for p in problems]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _listed(origin: str, lines: list[str]) -> str:
    shown = lines[:_MOST_SHOWN] + ([f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else [])
    title = f"{shortened(origin)}: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([title, *(f"  {line}" for line in shown)])


def _read(name_or_path: str, via: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in via:
        raise RecipeError(f"extends: {' -> '.join([*via, name_or_path])} goes in a circle; break it")
    if len(via) > _MOST_EXTENDS:
        raise RecipeError(f"extends: {len(via)} recipes stand one on another; at most {_MOST_EXTENDS} may")
    path = Path(name_or_path)
    if name_or_path in shipped_recipes():
        text = (_LIBRARY / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and _exists(path):
        text = read_text(path, RecipeError, _MOST_BYTES)
    else:
        close = difflib.get_close_matches(name_or_path[:100], shipped_recipes(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(shipped_recipes())}"
        raise RecipeError(f"{shortened(repr(name_or_path))} is neither a shipped recipe nor a .yaml file; {hint}")
    tree = parse_yaml(text, shown_path(path), RecipeError)
    if not isinstance(tree, dict):
        raise RecipeError(f"{name_or_path}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    below = tree.pop("extends", None)
    if below is None:
        return tree
    if not isinstance(below, str):
        raise RecipeError(f"{name_or_path}: extends = {shortened(repr(below))}: name one recipe or .yaml file")
    name = below
    if name.endswith((".yaml", ".yml")):
        name = str(path.parent / name)  # beside the file that names it
    return cast(dict[str, Any], _merged(_read(name, (*via, name_or_path)), tree))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _merged(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`: mappings merge, everything else replaces, null removes a mapping.

    A mixture replaces the whole mixture, since its shares sum to 1; a section of another `kind` (a source,
    a format) replaces the whole section, since its keys are others.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if key == "mixture" or below.get("kind") != above.get("kind", below.get("kind")):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merged(below.get(key), value, key)
        if value is None and isinstance(below.get(key), dict):
            del merged[key]
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted.strip():
        raise RecipeError(f"override {shortened(repr(override))}: write key.sub=value, e.g. train.learning_rate=1e-3")
    shown = shortened(repr(override))
    value = parse_yaml(text, f"override {shown}: the value", RecipeError)
    node, keys = tree, dotted.strip().split(".")
    for depth, key in enumerate(keys[:-1]):
        below = node.get(key)
        if below is None:
            below = node[key] = {}
        if key == "parent" and isinstance(below, str):  # `parent: stable` is short for a mapping
            below = node[key] = {"stage": below}
        if not isinstance(below, dict):
            at = ".".join(keys[: depth + 1])
            raise RecipeError(f"override {shown}: {at} is {shortened(repr(below))}, which has no keys")
        node = below
    node[keys[-1]] = value


def _explain(error: ErrorDetails) -> str:
    """One pydantic error in the house's words."""
    where = [str(part) for part in error["loc"]]
    key = ".".join(part for i, part in enumerate(where) if not _is_union_tag(where, i))
    value, message = error["input"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields_near(where)
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{key} = {shortened(repr(value), 120)}: there is no such key; {hint}"
    if error["type"] == "missing":
        return f"{key}: this key is missing; add it"
    return f"{key} = {shortened(repr(value), 120)}: {shortened(message, 400)}"


def _is_union_tag(where: list[str], i: int) -> bool:
    """Whether pydantic put this part of a path there to say which `kind` of a union it took."""
    return where[:2] == ["data", "sources"] and (i == 3 or (i > 3 and where[i - 1] == "format"))


def _fields_near(where: list[str]) -> list[str]:
    """Fields of the section that holds the last key of a path."""
    section: Any = Recipe
    for part in where[:-1]:
        found = _step_into(section, part)
        if found is None:
            break
        section = found
    return sorted(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _step_into(section: Any, part: str) -> Any:
    def models(annotation: Any) -> list[Any]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [m for argument in get_args(annotation) for m in models(argument)]

    def tagged(candidates: list[Any], tag: str) -> Any:
        for candidate in candidates:
            kind = candidate.model_fields.get("kind")
            if kind is not None and tag in get_args(kind.annotation):
                return candidate
        return None

    if isinstance(section, list):  # a union, or the values of a mapping
        return tagged(section, part) or (section[0] if len(section) == 1 else section)
    field = section.model_fields.get(part)
    if field is None:
        return None
    candidates = models(field.annotation)
    is_mapping = str(field.annotation).startswith("dict")
    return candidates if is_mapping or len(candidates) > 1 else (candidates[0] if candidates else None)
