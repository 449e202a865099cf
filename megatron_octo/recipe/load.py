"""From a file or a shipped name, with dotted overrides, to a checked recipe."""

import difflib
import re
from collections.abc import Hashable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from megatron_octo.errors import RecipeError
from megatron_octo.recipe.check import problems_of
from megatron_octo.recipe.recipe import Recipe

_LIBRARY = resources.files("megatron_octo.recipe") / "library"


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice (the last one would win in silence) and reads 5e-5 as a number."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise RecipeError(f"line {key_node.start_mark.line + 1}: {key!r} cannot be a key; keys are plain words")
        if key in seen:
            raise RecipeError(f"{key!r} is written twice (line {key_node.start_mark.line + 1}); keep one of them")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
# YAML 1.1 reads `5e-5` as text; people mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


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
    """Check a recipe given as plain dictionaries."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_listed(origin, [_explain(e) for e in error.errors()])) from None
    if problems := problems_of(recipe):
        raise RecipeError(_listed(origin, [str(p) for p in problems]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal one."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _listed(origin: str, lines: list[str]) -> str:
    return f"{origin}: {len(lines)} problem{'s' if len(lines) > 1 else ''}\n" + "\n".join(f"  {line}" for line in lines)


def _read(name_or_path: str, via: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in via:
        raise RecipeError(f"extends: {' -> '.join([*via, name_or_path])} goes in a circle; break it")
    path = Path(name_or_path)
    if name_or_path in shipped_recipes():
        text = (_LIBRARY / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        close = difflib.get_close_matches(name_or_path, shipped_recipes(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(shipped_recipes())}"
        raise RecipeError(f"{name_or_path!r} is neither a shipped recipe nor a .yaml file; {hint}")
    try:
        tree = _without_aliases(yaml.load(text, Loader=_Loader))  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name_or_path}: not YAML: {error}") from None
    except RecipeError as error:
        raise RecipeError(f"{name_or_path}: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{name_or_path}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    below = tree.pop("extends", None)
    if below is None:
        return tree
    name = str(below)
    if name.endswith((".yaml", ".yml")):
        name = str(path.parent / name)  # beside the file that names it
    return cast(dict[str, Any], _merged(_read(name, (*via, name_or_path)), tree))


def _without_aliases(value: Any) -> Any:
    """A copy in which YAML's `*alias` is a value of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _without_aliases(below) for key, below in value.items()}
    return [_without_aliases(below) for below in value] if isinstance(value, list) else value


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
        raise RecipeError(f"override {override!r}: write key.sub=value, e.g. train.learning_rate=1e-3")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not YAML: {error}") from None
    node, keys = tree, dotted.strip().split(".")
    for depth, key in enumerate(keys[:-1]):
        below = node.get(key)
        if below is None:
            below = node[key] = {}
        if key == "parent" and isinstance(below, str):  # `parent: stable` is short for a mapping
            below = node[key] = {"stage": below}
        if not isinstance(below, dict):
            raise RecipeError(f"override {override!r}: {'.'.join(keys[: depth + 1])} is {below!r}, which has no keys")
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
        return f"{key} = {value!r}: there is no such key; {hint}"
    if error["type"] == "missing":
        return f"{key}: this key is missing; add it"
    shown = repr(value)
    return f"{key} = {shown if len(shown) < 120 else shown[:117] + '...'}: {message}"


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
