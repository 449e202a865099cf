"""The shipped full-size recipes against the paper's tables and the bases' published shapes."""

import pytest

from megatron_octo.recipe import Recipe, load_recipe

FULL_SIZE = ("octothinker-1b", "octothinker-3b", "octothinker-8b", "qwen2.5-3b")
INSTRUCTION = ("tulu3-personas-if", "wildchat", "ultrachat")
# arXiv 2506.20512; `instruction` is the three sets together
STABLE = {
    "megamath-web-pro-max": 0.725,
    "dclm-baseline": 0.10,
    "megamath-text-code-block": 0.10,
    "megamath-qa": 0.05,
    "megamath-code": 0.0125,
    "megamath-translated-code": 0.0125,
}
COMMON = {"megamath-web-pro": 0.55, "dclm-baseline": 0.05, "instruction": 0.10}
BRANCHES = {
    "decay-long": COMMON | {"openr1-math": 0.15, "am-deepseek-distilled": 0.15},
    "decay-short": COMMON | {"megamath-qa": 0.025, "openmathinstruct-2": 0.175, "numinamath-1.5": 0.10},
    "decay-hybrid": COMMON | {"openr1-math": 0.10, "openmathinstruct-2": 0.10, "numinamath-1.5": 0.10},
}


def _shares(recipe: Recipe, stage: str) -> dict[str, float]:
    mixture = recipe.stages[stage].mixture
    shares = {source: share for source, share in mixture.items() if source not in INSTRUCTION}
    instruction = sum(mixture.get(source, 0.0) for source in INSTRUCTION)
    return shares | ({"instruction": instruction} if instruction else {})


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_papers_mixtures(name: str) -> None:
    recipe = load_recipe(name)
    assert _shares(recipe, "stable") == pytest.approx(STABLE, abs=1e-9)
    for branch, shares in BRANCHES.items():
        assert _shares(recipe, branch) == pytest.approx(shares, abs=1e-9)
        assert recipe.stages[branch].parent.stage == "stable"
        assert recipe.stages[branch].parent.at is None
    assert {source for stage in recipe.stages.values() for source in stage.mixture} == set(recipe.data.sources)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_papers_batch_and_optimizer(name: str) -> None:
    train = load_recipe(name).train
    assert (train.sequence_length, train.global_batch_size) == (8192, 512)
    assert (train.optimizer.weight_decay, train.optimizer.beta1, train.optimizer.beta2) == (0.1, 0.9, 0.95)
    assert train.optimizer.clip_grad == 1.0


# Parameters as the models' safetensors indices count them.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("octothinker-1b", 1_235_814_400),
        ("octothinker-3b", 3_212_749_824),
        ("octothinker-8b", 8_030_261_248),
        ("qwen2.5-3b", 3_085_938_688),
    ],
)
def test_the_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert load_recipe(name).model.architecture.num_parameters() == parameters


def test_flops_of_a_token_counted_by_hand() -> None:
    # Weights: 4 layers x (128 x 256 for q, k, v; 128 x 128 for the output; 3 x 128 x 384) and 264 x 128 for the
    # vocabulary = 4 x (32,768 + 16,384 + 147,456) + 33,792 = 820,224. Causal attention: 6 x 4 x 128 x 128 = 393,216.
    assert load_recipe("tiny").model.architecture.flops_per_token(128) == 6 * 820_224 + 393_216


def test_the_tree() -> None:
    recipe = load_recipe("octothinker-1b")
    assert recipe.in_order() == ["stable", "decay-long", "decay-short", "decay-hybrid"]
    assert recipe.children("stable") == ["decay-long", "decay-short", "decay-hybrid"]
    assert recipe.children("decay-long") == []
    assert recipe.ancestry("decay-short") == ["stable", "decay-short"]
    assert recipe.parent_step("stable") == 0
    assert recipe.parent_step("decay-long") == 47_684
    assert recipe.parent_learning_rate("stable") is None
    assert recipe.parent_learning_rate("decay-long") == 5e-5
    assert recipe.branch_steps("stable") == [47_684]


def test_a_branch_of_a_branch_is_run_after_it() -> None:
    more = "{parent: decay-long, tokens: 1M, learning_rate: {peak: 2e-4}, mixture: {web: 1.0}}"
    recipe = load_recipe("tiny", [f"stages.more={more}"])
    assert recipe.in_order()[-1] == "more"
    assert recipe.ancestry("more") == ["stable", "decay-long", "more"]
    assert recipe.lineage_tokens("more") == (489 + 171) * 4_096
    assert recipe.parent_learning_rate("more") == pytest.approx(2e-4)
