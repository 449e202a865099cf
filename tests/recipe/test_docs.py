"""docs/recipes.md against the schema."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from megatron_octo.recipe import Recipe, load_recipe, shipped_recipes
from megatron_octo.recipe.load import build_recipe, dump_recipe

DOC = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def _sections(annotation: Any) -> set[type[BaseModel]]:
    """Every section that can be reached from a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        below = [_sections(field.annotation) for field in annotation.model_fields.values()]
        return {annotation}.union(*below)
    return set().union(*(_sections(argument) for argument in get_args(annotation)))


FIELDS = sorted({(section.__name__, field) for section in _sections(Recipe) for field in section.model_fields})


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_every_key_is_documented(section: str, field: str) -> None:
    text = re.sub(r"```.*?```", "", DOC, flags=re.DOTALL)
    words = {part for code in re.findall(r"`([^`]+)`", text) for part in re.split(r"[^a-z0-9_]+", code)}
    assert field in words, f"{section}.{field} is not in docs/recipes.md"


def test_the_shipped_recipes_are_listed() -> None:
    for name in shipped_recipes():
        assert f"| `{name}` |" in DOC


def test_the_example_branch_is_a_recipe(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example)
    recipe = load_recipe(str(path))
    assert recipe.children("stable")[-1] == "decay-early"
    assert recipe.parent_step("decay-early") == 23_842  # 100B / 4,194,304 = 23,841.9


def test_a_recipe_can_be_built_from_dictionaries() -> None:
    recipe = load_recipe("tiny")
    assert build_recipe(recipe.model_dump(mode="json")) == recipe
    assert "heldout_problems: 256" in dump_recipe(recipe)
