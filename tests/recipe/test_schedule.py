"""Learning rates and step counts against numbers worked out by hand."""

import pytest

from megatron_octo.recipe import load_recipe
from megatron_octo.recipe.schedule import learning_rate, learning_rate_of_step, mark_of_step, steps_of

B = 1_000_000_000
BRANCHES = ("decay-long", "decay-short", "decay-hybrid")
# Lineage tokens 0, 100B, 200B, 210B, 220B. Half-way down a cosine to a tenth stands (1 + 0.1) / 2 = 0.55.
BY_HAND = {
    "octothinker-1b": (5e-5, 5e-5, 5e-5, 2.75e-5, 5e-6),
    "octothinker-3b": (2e-5, 2e-5, 2e-5, 1.1e-5, 2e-6),
    "octothinker-8b": (1e-5, 1e-5, 1e-5, 5.5e-6, 1e-6),
    "qwen2.5-3b": (2e-5, 2e-5, 2e-5, 1.1e-5, 2e-6),
}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("name", BY_HAND)
def test_the_papers_rates_at_marks_of_the_lineage(name: str, branch: str) -> None:
    recipe = load_recipe(name)
    stable, decay, train = recipe.stages["stable"], recipe.stages[branch], recipe.train
    at_0, at_100, at_200, at_210, at_220 = BY_HAND[name]
    assert learning_rate(stable, 0, train) == at_0
    assert learning_rate(stable, 100 * B, train) == at_100
    assert learning_rate(stable, 200 * B, train) == at_200
    assert learning_rate(decay, 0, train) == at_200  # no jump at the branch
    assert learning_rate(decay, 10 * B, train) == pytest.approx(at_210, rel=1e-12)
    assert learning_rate(decay, 20 * B, train) == pytest.approx(at_220, rel=1e-15)


def test_a_quarter_and_three_quarters_down_the_cosine() -> None:
    # cos(pi/4) = 0.70710678: 0.1 + 0.45 * 1.70710678 = 0.868198052 and 0.1 + 0.45 * 0.29289322 = 0.231801948
    recipe = load_recipe("octothinker-1b")
    decay = recipe.stages["decay-hybrid"]
    assert learning_rate(decay, 5 * B, recipe.train) == pytest.approx(5e-5 * 0.868198052, rel=1e-8)
    assert learning_rate(decay, 15 * B, recipe.train) == pytest.approx(5e-5 * 0.231801948, rel=1e-8)


@pytest.mark.parametrize("name", BY_HAND)
def test_budgets_round_up_to_whole_steps(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.train.tokens_per_step == 4_194_304
    assert recipe.steps("stable") == 47_684  # 47,683.7
    assert [recipe.steps(branch) for branch in BRANCHES] == [4_769] * 3  # 4,768.4
    assert recipe.lineage_tokens("stable") == 0
    assert recipe.lineage_tokens("decay-long") == 47_684 * 4_194_304 == 200_001_191_936


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (4_096, 1), (4_097, 2), (8_192, 2), (3_000_000, 733)])
def test_rounding_at_the_edges(tokens: int, steps: int) -> None:
    assert steps_of(tokens, load_recipe("tiny").train) == steps


@pytest.mark.parametrize("name", [*BY_HAND, "tiny"])
def test_first_and_last_updates_have_the_exact_rates(name: str) -> None:
    recipe = load_recipe(name)
    for stage_name, stage in recipe.stages.items():
        last = recipe.steps(stage_name) - 1
        assert learning_rate_of_step(stage, 0, recipe.train) == recipe.train.learning_rate
        expected = recipe.train.learning_rate * (1.0 if stage.learning_rate.shape == "constant" else 0.1)
        assert learning_rate_of_step(stage, last, recipe.train) == expected


def test_marks_stay_within_a_step_of_the_tokens_consumed() -> None:
    recipe = load_recipe("octothinker-1b")
    decay, per_step = recipe.stages["decay-long"], recipe.train.tokens_per_step
    for step in (0, 1, 2_000, 4_767, 4_768):
        assert abs(mark_of_step(decay, step, recipe.train) - step * per_step) < per_step
    assert mark_of_step(decay, 4_768, recipe.train) == 20 * B


# Peak 2e-3, budget 1M.
@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [
        ({"shape": "linear", "floor": 0.5, "peak": 2e-3}, 0, 2e-3),
        ({"shape": "linear", "floor": 0.5, "peak": 2e-3}, 500_000, 1.5e-3),
        ({"shape": "linear", "floor": 0.5, "peak": 2e-3}, 1_000_000, 1e-3),
        ({"shape": "constant", "warmup": "100K", "peak": 2e-3}, 0, 0.0),
        ({"shape": "constant", "warmup": "100K", "peak": 2e-3}, 25_000, 5e-4),
        ({"shape": "constant", "warmup": "100K", "peak": 2e-3}, 100_000, 2e-3),
        ({"shape": "constant", "warmup": "100K", "peak": 2e-3}, 1_000_000, 2e-3),
        # after 200K of warm-up, 400K more are half of what is left
        ({"shape": "cosine", "floor": 0.0, "warmup": "200K", "peak": 2e-3}, 200_000, 2e-3),
        ({"shape": "cosine", "floor": 0.0, "warmup": "200K", "peak": 2e-3}, 600_000, 1e-3),
        ({"shape": "cosine", "floor": 0.0, "warmup": "200K", "peak": 2e-3}, 1_000_000, 0.0),
        ({"shape": "cosine", "floor": 0.1, "peak": 2e-3}, 5_000_000, 2e-4),  # held beyond the budget
    ],
)
def test_other_shapes(shape: dict[str, object], tokens: int, expected: float) -> None:
    text = "{" + ", ".join(f"{key}: {value}" for key, value in shape.items()) + "}"
    # the branches would see a jump where the parent's last rate is not theirs, so the tree is cut to one stage
    recipe = load_recipe(
        "tiny",
        ["stages={stable: {parent: base, tokens: 1M, learning_rate: " + text + ", mixture: {web: 1.0}}}"],
    )
    assert learning_rate(recipe.stages["stable"], tokens, recipe.train) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_a_stage_of_one_step_takes_its_first_rate() -> None:
    recipe = load_recipe("tiny", ["stages.decay-long.tokens=4096"])
    assert learning_rate_of_step(recipe.stages["decay-long"], 0, recipe.train) == 2e-3
