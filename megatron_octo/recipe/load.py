"""From a file or a shipped name, with dotted overrides, to a checked recipe."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from megatron_octo.errors import RecipeError, did_you_mean
from megatron_octo.reading.json_text import shortened
from megatron_octo.reading.text import read_text, shown_path
from megatron_octo.reading.values import check_value
from megatron_octo.reading.yaml_text import MOST_CHARACTERS, dump_yaml, parse_yaml
from megatron_octo.recipe.check import problems_of
from megatron_octo.recipe.explain import explained
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

    Everything that is wrong in the recipe's text alone is found here. What depends on the machine or on files is found
    by the command that needs them.

    Raises:
        RecipeError: with every problem, each with its key, its value and the way out.
    """
    tree = _read(name_or_path, via=())
    for override in overrides:
        _apply(tree, override)
    return build_recipe(tree, origin=name_or_path)


def build_recipe(tree: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Check a recipe that is given as plain dictionaries.

    Args:
        origin: where it is from, for messages.

    Raises:
        RecipeError: with every problem.
    """
    check_value(tree, shortened(origin), RecipeError)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_listed(origin, explained(error.errors(include_url=False), tree))) from None
    if problems := problems_of(recipe):
        raise RecipeError(_listed(origin, [str(problem) for problem in problems]))
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which `load_recipe` reads back to an equal one."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _listed(origin: str, lines: list[str]) -> str:
    shown = lines[:_MOST_SHOWN] + ([f"and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else [])
    title = f"{shortened(origin)}: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([title, *(f"  {line}" for line in shown)])


def _read(name_or_path: str, via: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a recipe and of those it extends.

    Args:
        via: the recipes that extend it, the first one first.
    """
    if name_or_path in via:
        raise RecipeError(f"extends: {' -> '.join([*via, name_or_path])} goes in a circle; break it")
    if len(via) > _MOST_EXTENDS:
        raise RecipeError(f"extends: {len(via)} recipes extend one another; at most {_MOST_EXTENDS} may")
    path = Path(name_or_path)
    if name_or_path in shipped_recipes():
        text = (_LIBRARY / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and _exists(path):
        text = read_text(path, RecipeError, _MOST_BYTES)
    else:
        hint = did_you_mean(name_or_path, shipped_recipes(), f"shipped: {', '.join(shipped_recipes())}")
        raise RecipeError(f"{shortened(repr(name_or_path))} is neither a shipped recipe nor a .yaml file; {hint}")
    tree = parse_yaml(text, shown_path(path), RecipeError)
    if not isinstance(tree, dict):
        raise RecipeError(f"{name_or_path}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    below = tree.pop("extends", None)
    if below is None:
        return tree
    if not isinstance(below, str):
        raise RecipeError(f"{name_or_path}: extends = {shortened(repr(below))}: name one recipe or .yaml file")
    if below.endswith((".yaml", ".yml")):
        below = str(path.parent / below)  # relative to the file that names it
    return cast(dict[str, Any], _merged(_read(below, (*via, name_or_path)), tree))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or contains a NUL
        return False


def _merged(below: Any, above: Any, key: str = "") -> Any:
    """`above` laid over `below`: mappings merge, everything else replaces, null removes a mapping.

    A mixture replaces the whole mixture, since its shares sum to 1. A section of another `kind` (a source, a format)
    replaces the whole section, since it has other keys.
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
    """Set the value of a `key.sub=value` override in place."""
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
