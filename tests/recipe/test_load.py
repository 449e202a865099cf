"""Overrides, `extends`, and the round trip."""

from pathlib import Path

import pytest
import yaml

from megatron_octo.recipe import dump_recipe, load_recipe, shipped_recipes
from megatron_octo.recipe.data import HubSource, LongCotFormat, ParquetSource
from megatron_octo.recipe.load import _merged


def _file(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_what_is_shipped() -> None:
    assert shipped_recipes() == ["octothinker-1b", "octothinker-3b", "octothinker-8b", "qwen2.5-3b", "tiny"]
    for name in shipped_recipes():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("name", shipped_recipes())
def test_dumping_and_loading_gives_an_equal_recipe(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    again = load_recipe(_file(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


def test_the_dump_holds_every_default() -> None:
    tree = yaml.safe_load(dump_recipe(load_recipe("tiny")))
    assert tree["train"]["optimizer"] == {
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "clip_grad": 1.0,
    }


def test_overrides_reach_any_depth_and_read_yaml_values() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "seed=7",
            "train.learning_rate=5e-4",
            "train.optimizer.beta2=0.99",
            "stages.stable.tokens=1_000_000",
            "train.logging={tensorboard: false}",
            "parallel.pipeline=1",
            "description=a = b",
        ],
    )
    assert recipe.seed == 7
    assert recipe.train.learning_rate == 5e-4
    assert recipe.train.optimizer.beta2 == 0.99
    assert recipe.stages["stable"].tokens == 1_000_000
    assert recipe.train.logging.tensorboard is False
    assert recipe.parallel.pipeline == 1
    assert recipe.description == "a = b"


def test_yes_and_no_mean_what_the_key_takes() -> None:
    recipe = load_recipe("tiny", ["train.logging.tensorboard=no", "train.checkpointing.asynchronous=yes", "name=no"])
    assert not recipe.train.logging.tensorboard and recipe.train.checkpointing.asynchronous
    assert recipe.name == "no"


def test_the_last_override_wins() -> None:
    assert load_recipe("tiny", ["seed=1", "seed=2"]).seed == 2


def test_an_override_of_one_branch_leaves_its_siblings_alone() -> None:
    # the three branches share one YAML anchor
    recipe = load_recipe("tiny", ["stages.decay-long.learning_rate.floor=0.2"])
    floors = {name: stage.learning_rate.floor for name, stage in recipe.stages.items() if name != "stable"}
    assert floors == {"decay-long": 0.2, "decay-short": 0.1, "decay-hybrid": 0.1}


def test_a_branch_is_moved_to_an_earlier_mark_of_its_parent() -> None:
    recipe = load_recipe("tiny", ["stages.decay-long.parent.at=1M"])
    assert recipe.stages["decay-long"].parent.stage == "stable"
    assert recipe.parent_step("decay-long") == 245  # 1,000,000 / 4,096 = 244.1
    assert recipe.lineage_tokens("decay-long") == 245 * 4_096
    assert recipe.branch_steps("stable") == [245, 489]


def test_extends_says_only_what_differs() -> None:
    small, large = load_recipe("octothinker-1b"), load_recipe("octothinker-8b")
    assert large.data == small.data
    assert large.stages == small.stages
    assert large.train.optimizer == small.train.optimizer
    assert large.train.learning_rate == 1e-5
    assert large.model.architecture.rope_scaling is not None
    assert large.model.architecture.rope_scaling.factor == 8.0
    assert large.model.architecture.rope_scaling.original_max_position_embeddings == 8192
    assert load_recipe("qwen2.5-3b").model.architecture.rope_scaling is None


def test_a_file_extends_its_neighbour_wherever_octo_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    _file(tmp_path / "recipes", "extends: tiny\nname: below\nseed: 5\n", "below.yaml")
    path = _file(tmp_path / "recipes", "extends: below.yaml\nname: above\n", "above.yaml")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert (recipe.name, recipe.seed) == ("above", 5)


def test_a_mixture_is_replaced_whole(tmp_path: Path) -> None:
    path = _file(tmp_path, "extends: tiny\nname: mine\nstages: {stable: {mixture: {web: 0.7, qa: 0.3}}}\n")
    assert load_recipe(path).stages["stable"].mixture == {"web": 0.7, "qa": 0.3}


def test_a_source_of_another_kind_is_replaced_whole(tmp_path: Path) -> None:
    text = "extends: octothinker-1b\nname: mine\ndata: {sources: {dclm-baseline: {kind: parquet, paths: [dclm/*]}}}\n"
    sources = load_recipe(_file(tmp_path, text)).data.sources
    assert sources["dclm-baseline"] == ParquetSource(kind="parquet", paths=["dclm/*"])
    assert isinstance(sources["megamath-qa"], HubSource)


def test_a_source_of_the_same_kind_is_merged(tmp_path: Path) -> None:
    text = "extends: octothinker-1b\nname: mine\ndata: {sources: {dclm-baseline: {max_tokens: 1B}}}\n"
    source = load_recipe(_file(tmp_path, text)).data.sources["dclm-baseline"]
    assert isinstance(source, HubSource)
    assert (source.dataset, source.max_tokens) == ("mlfoundations/dclm-baseline-1.0", 10**9)


def test_null_takes_a_section_out(tmp_path: Path) -> None:
    path = _file(tmp_path, "extends: tiny\nname: mine\nstages: {decay-short: null}\n")
    assert list(load_recipe(path).stages) == ["stable", "decay-long", "decay-hybrid"]


def test_merging_changes_neither_side() -> None:
    below, above = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}
    assert _merged(below, above) == {"a": {"b": 4, "c": 2}, "d": 3}
    assert below == {"a": {"b": 1, "c": 2}, "d": 3}
    assert above == {"a": {"b": 4}}


def test_a_thought_of_null_is_kept() -> None:
    for name in ("openr1-math", "am-deepseek-distilled"):
        source = load_recipe("octothinker-1b").data.sources[name]
        assert isinstance(source, HubSource)
        assert isinstance(source.format, LongCotFormat)
        assert source.format.thought is None
