"""Recipes with values out of all bounds: refused soon, in our own words."""

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.errors import OctoError, RecipeError
from megatron_octo.recipe import build_recipe, load_recipe

SHAPE = "model.architecture."
RL = "rl={prompts: {kind: builtin, count: 8}, "


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.learning_rate=.inf"], "not a finite number"),
        (["train.learning_rate=1e999"], "not a finite number"),
        (["seed=" + "1" + "0" * 23], "integer of 77 bits"),
        (["seed=4294967296"], "less than or equal to 4294967295"),
        (["rl.seed=4294967296"], "less than or equal to 2147483647"),
        (["rl.reward={right: .nan}"], "not a finite number"),
        (["rl.prompts.count=1000000000"], "less than or equal to 1000000"),
        ([SHAPE + "num_hidden_layers=1000000000"], "less than or equal to 4096"),
        ([SHAPE + "initializer_range=0"], "initializer_range = 0"),
        ([SHAPE + "vocab_size=0"], "vocab_size = 0"),
        ([SHAPE + "head_dim=33"], "RoPE needs an even head"),
        (["data.sources.web.documents=10000000000"], "less than or equal to"),
        (["parallel.data=1000000000"], "less than or equal to 65536"),
        (["stages.stable.tokens=9999999T"], "at most 1000T"),
        (["stages.stable.tokens=1000T"], "samples of 128 tokens"),
        (["stages.stable.tokens=" + "9" * 4000], "integer of 13288 bits"),
        (["train.data_workers=100000"], "less than or equal to 256"),
        (["description=" + "x" * 70_000], "at most 65536 characters"),
        (["description=" + "x" * 20_000_000], "20,000,000 characters"),
        (['rl.template="{prompt.evil}"'], "only {prompt} alone is filled in"),
        (['rl.template="{prompt:>1000000000}"'], "only {prompt} alone is filled in"),
        (['rl.template="{prompt!r}"'], "only {prompt} alone is filled in"),
        (['rl.template="{prompt[0]}"'], "only {prompt} alone is filled in"),
        (['rl.template="{}"'], "only {prompt} alone is filled in"),
        (['rl.template="{prompt"'], "not a template"),
        (['rl.template="no problem"'], "a template without {prompt}"),
    ],
)
def test_values_out_of_bounds(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        load_recipe("tiny", overrides)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "", "x" * 101, "a b", "é", "a\n", "..", "a\\b", "a:b"])
@pytest.mark.parametrize("what", ["recipe", "stage", "source"])
def test_names_that_would_be_paths(name: str, what: str) -> None:
    tree = load_recipe("tiny").model_dump(mode="json")
    if what == "recipe":
        tree["name"] = name
    elif what == "stage":
        tree["stages"][name] = tree["stages"].pop("decay-short")
    else:
        tree["data"]["sources"][name] = tree["data"]["sources"].pop("code")
        tree["stages"]["stable"]["mixture"][name] = tree["stages"]["stable"]["mixture"].pop("code")
    with pytest.raises(RecipeError, match=r"at most 100 characters|should match pattern"):
        build_recipe(tree)


@pytest.mark.parametrize("name", ["A-Run_2.5", "x" * 100, "3b", "_a"])
def test_names_that_are_right(name: str) -> None:
    assert load_recipe("tiny", [f"name='{name}'"]).name == name


@pytest.mark.parametrize("name", ["x" * 5000 + ".yaml", "a\0b.yaml", ".", "/dev/zero.yaml"])
def test_paths_that_are_none(name: str) -> None:
    with pytest.raises(RecipeError, match=r"neither a shipped recipe nor a \.yaml file"):
        load_recipe(name)


def test_a_file_that_is_not_utf8(tmp_path: Any) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("description: é\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(str(path))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=4),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=6,
)


def _paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(tree, dict):
        return [at]
    return [at, *(path for key, below in tree.items() for path in _paths(below, (*at, key)))]


TINY = load_recipe("tiny").model_dump(mode="json")


@settings(max_examples=400, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([path for path in _paths(TINY) if path]), JUNK)
def test_any_value_at_any_key(path: tuple[Any, ...], value: Any) -> None:
    """A recipe is accepted, or refused by our own error."""
    tree = json.loads(json.dumps(TINY))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with contextlib.suppress(OctoError):
        build_recipe(tree)
