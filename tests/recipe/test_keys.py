"""Every key of every section: what is wrong with it is reported under the key as it is written in the recipe."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from megatron_octo.errors import RecipeError
from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.recipe.base import Section

QA = {"kind": "qa", "question": "q", "answer": "a", "template": "{question} {answer}"}
OVERRIDES = {
    "model.architecture.rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "data.sources.lines": {"kind": "jsonl", "paths": ["a.jsonl"], "format": {"kind": "text"}},
    "data.sources.parquet": {"kind": "parquet", "paths": ["a.parquet"], "format": QA},
    "data.sources.hub": {"kind": "hub", "dataset": "d", "format": {"kind": "instruction"}},
    "data.sources.thoughts": {"kind": "hub", "dataset": "d", "format": {"kind": "long_cot"}},
    "data.decontamination.against": {"gsm8k": {"paths": ["b.jsonl"], "fields": ["question"]}},
    "stages.stable.parallel": {"tensor": 1},
    "stages.decay-short.parent": {"stage": "stable", "at": "1M"},
    "rl.prompts": {"kind": "file", "path": "p.jsonl"},
    "rl.validation": {"kind": "builtin", "count": 8},
    "rl.test_sets": {"math": {"path": "m.jsonl"}},
    "rl.stop": ["0"],
}
"""Sections that `tiny` lacks, so that there is one of every class."""


def _tree() -> dict[str, Any]:
    recipe = load_recipe("tiny", [f"{key}={json.dumps(value)}" for key, value in OVERRIDES.items()])
    return recipe.model_dump(mode="json")


TREE = _tree()
RECIPE = Recipe.model_validate(TREE)
Place = tuple[str | int, ...]


def _sections(value: Any, at: Place = ()) -> Iterator[tuple[Place, Section]]:
    """Every section of a recipe, and where it is."""
    if isinstance(value, Section):
        yield at, value
        items: Any = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return
    for name, item in items:
        yield from _sections(item, (*at, name))


def _values(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place that a value stands at: fields, items of lists, and entries of mappings."""
    if at:
        yield at
    if at[:-1] == ("rl", "openrlhf"):  # a list there is one value of several types
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _values(item, (*at, name))


def _classes(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(_classes(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*(_classes(argument) for argument in get_args(annotation)))


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _lines(tree: Any, folder: Path) -> list[str]:
    """The problems that `load_recipe` finds in a file with this tree."""
    path = folder / "mine.yaml"
    path.write_text(json.dumps(tree))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    title, *lines = str(caught.value).splitlines()
    assert title == f"{path}: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return [line.strip() for line in lines]


def _at(place: Place) -> Any:
    node: Any = TREE
    for part in place:
        node = node[part]
    return node


def _with(place: Place, value: Any) -> Any:
    tree = json.loads(json.dumps(TREE))
    node = tree
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return tree


def test_every_class_of_section_is_among_them() -> None:
    assert {type(section) for _, section in _sections(RECIPE)} == _classes(Recipe)


@pytest.mark.parametrize("place", list(_values(TREE)), ids=_dotted)
def test_a_value_of_a_wrong_type(place: Place, tmp_path: Path) -> None:
    takes_a_mapping = isinstance(_at(place), dict | list) or place[-1] in ("parent", "parallel", "rope_scaling")
    is_option = place[:-1] == ("rl", "openrlhf")  # which may be a number
    wrong = 7.5 if takes_a_mapping and not is_option else {"of": ["another type"]}
    (line,) = _lines(_with(place, wrong), tmp_path)
    assert line.startswith(f"{_dotted(place)} = {wrong!r}: ")


@pytest.mark.parametrize("place", [place for place, _ in _sections(RECIPE)], ids=lambda place: _dotted(place) or "top")
def test_a_misspelt_key_beside_every_known_one(place: Place, tmp_path: Path) -> None:
    known = list(type(dict(_sections(RECIPE))[place]).model_fields)
    misspelt = {key: f"{key}{key[-1]}" for key in known}
    section = {**_at(place), **dict.fromkeys(misspelt.values(), 1)}
    lines = _lines(_with(place, section) if place else section, tmp_path)
    for key in known:
        assert f"{_dotted((*place, misspelt[key]))} = 1: there is no such key; did you mean {key!r}?" in lines
    assert len(lines) == len(known)


@pytest.mark.parametrize(
    "place", [place for place, section in _sections(RECIPE) if hasattr(section, "kind")], ids=_dotted
)
def test_a_section_of_no_kind_or_an_unknown_one(place: Place, tmp_path: Path) -> None:
    key = _dotted((*place, "kind"))
    assert _lines(_with(place, {}), tmp_path) == [f"{key}: this key is missing; add it"]
    (line,) = _lines(_with((*place, "kind"), "sql"), tmp_path)
    assert line.startswith(f"{key} = 'sql': there is no such kind; known: '")


STAGE = {"parent": "stable", "tokens": 1000, "mixture": {"web": 1}}
SOURCE = {"kind": "builtin", "corpus": "web", "documents": 99}


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        # a name, which becomes a folder, is itself wrong
        (("stages", "a/b"), STAGE, "stages.a/b = 'a/b': String should match"),
        (("data", "sources", ".a"), SOURCE, "data.sources..a = '.a': String should match"),
        # one line, whatever types the value may have
        (("parallel", "data"), "all", "parallel.data = 'all': Input should be a valid integer, "),
        (
            ("parallel", "data"),
            1 << 30,
            "parallel.data = 1073741824: Input should be less than or equal to 65536 or 'a",
        ),
        (("rl", "template"), 5, "rl.template = 5: Input should be 'simple' or 'complex' or a valid string"),
        (("rl", "openrlhf"), {"a.b": [["c"]]}, "rl.openrlhf.a.b = [['c']]: Input should be a valid boolean or a valid"),
        (("rl", "openrlhf"), {"a": {"b": 1}}, "rl.openrlhf.a = {'b': 1}: Input should be a valid boolean"),
        (("rl", "correction", "bounds"), [1.0], "rl.correction.bounds.1: this key is missing"),
        (("rl", "response_tokens"), [{"from_step": 0}], "rl.response_tokens.0.tokens: this key is missing; add it"),
        (("rl", "prompts"), {"kind": "builtin"}, "rl.prompts.count: this key is missing; add it"),
        (
            ("rl", "prompts"),
            {"kind": "builtin", "count": 9, "counts": 9},
            "rl.prompts.counts = 9: there is no such key",
        ),
        (("rl", "validation"), 7, "rl.validation = 7: a mapping of keys is expected here"),
    ],
)
def test_one_problem_for_one_wrong_value(place: Place, value: Any, expected: str, tmp_path: Path) -> None:
    (line,) = _lines(_with(place, value), tmp_path)
    assert line.startswith(expected)
