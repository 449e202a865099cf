"""Loading a recipe refuses a wrong `rl` section, with one problem for each wrong value."""

import re

import pytest

from megatron_octo.errors import RecipeError
from megatron_octo.recipe import load_recipe

FILE = "rl.prompts={kind: file, path: p.jsonl}"

BAD = {
    "mini-batch": (
        ["rl.mini_batch_prompts=7"],
        "rl.mini_batch_prompts = 7: does not divide rl.prompts_per_step = 64; give a divisor",
    ),
    "mini-batch larger than a step": (["rl.mini_batch_prompts=128"], "rl.mini_batch_prompts = 128: does not divide"),
    "micro-batch": (
        ["rl.micro_batch_size=7"],
        "rl.micro_batch_size = 7: a mini-batch of 64 prompts x 8 samples cannot be made of it on 1 GPUs (rl.gpus)",
    ),
    "micro-batch on the GPUs": (["rl.gpus=3"], "rl.micro_batch_size = 64: a mini-batch of 64 prompts x 8 samples"),
    "one sample": (
        ["rl.samples_per_prompt=1"],
        "rl.samples_per_prompt = 1: group_norm compares samples of one prompt; give 2 or more",
    ),
    "too few prompts": (
        ["rl.prompts.count=63"],
        "rl.prompts_per_step = 64: there are 63 prompts, which is not one step; lower it, or give more prompts",
    ),
    "too few prompts of a file": (
        ["rl.prompts={kind: file, path: p.jsonl, count: 63}"],
        "rl.prompts_per_step = 64: there are 63 prompts",
    ),
    "terms": (["rl.prompts.min_terms=4"], "rl.prompts.min_terms = 4: above max_terms 3; lower it"),
    "more sums than there are": (
        ["rl.prompts={kind: builtin, count: 201, min_terms: 2, max_terms: 2}"],
        "rl.prompts.count = 201: there are 200 such sums and differences; lower it, or allow more terms or digits",
    ),
    "the same for validation": (
        ["rl.validation={kind: builtin, count: 8, min_terms: 5}"],
        "rl.validation.min_terms = 5: above max_terms 4",
    ),
    "sync of shards": (["rl.check_sync=true", "rl.engine_gpus=2"], "rl.check_sync = True: it compares whole tensors"),
    "sync of a partitioned trainer": (
        ["rl.check_sync=true", "rl.openrlhf={ds.zero_stage: 3}"],
        "rl.check_sync = True: it compares whole tensors",
    ),
    "shared GPUs": (
        ["rl.engines=2", "rl.openrlhf={train.colocate_all: true}"],
        "rl.openrlhf.train.colocate_all = True: rl.gpus = 1 must equal rl.engines x rl.engine_gpus, which is 2",
    ),
    "an option that has a key": (
        ["rl.openrlhf={rollout.temperature: 0.5}"],
        "rl.openrlhf.rollout.temperature = 0.5: the `rl` section sets it, or it does not work here; set rl.temperature",
    ),
    "an option that does not work here": (
        ["rl.openrlhf={train.async_enable: true}"],
        "rl.openrlhf.train.async_enable = True: the `rl` section sets it, or it does not work here; leave it out",
    ),
    "an option of the critic": (
        ["rl.algorithm=gae", "rl.openrlhf={critic.adam.lr: 1.0}"],
        "rl.openrlhf.critic.adam.lr = 1.0: the `rl` section sets it, or it does not work here; set rl.critic_learning_",
    ),
    "a word that looks like an option": (
        ["rl.openrlhf={a.b: [--c, '1']}"],
        "rl.openrlhf.a.b = ['--c', '1']: --c: OpenRLHF would take it for an option; give another value",
    ),
    "a number that looks like an option": (
        ["rl.openrlhf={a.b: [-0.00001, 1.0]}"],
        "rl.openrlhf.a.b = [-1e-05, 1.0]: -1e-05: OpenRLHF would take it for an option",
    ),
    "a bound that looks like an option": (
        ["rl.correction.bounds=[-0.00001, 1.0]"],
        "rl.correction.bounds = [-1e-05, 1.0]: -1e-05: OpenRLHF would take it for an option",
    ),
    "bounds": (
        ["rl.correction.bounds=[5, 0.5]"],
        "rl.correction.bounds = [5.0, 0.5]: the first must be below the second",
    ),
    "a mode without its level": (["rl.correction={level: seq}"], "rl.correction.mode = 'clip': it is for level token"),
    "beyond the model's positions": (
        ["rl.max_prompt_tokens=465"],
        "rl.max_prompt_tokens = 465: with a response of 48 tokens that is 513, beyond model.architecture.max_position_",
    ),
    "a chat without a template": (
        ["rl.prompts={kind: file, path: p.jsonl, chat: true}"],
        "rl.prompts.chat = True: builtin:bytes has no chat template; name a field of text and leave chat out",
    ),
    "a template without its place": (
        ["rl.template=Solve it."],
        "rl.template = 'Solve it.': a template without {prompt}",
    ),
    "limits that begin late": (
        ["rl.response_tokens=[{from_step: 5, tokens: 9}]"],
        "rl.response_tokens = [{'from_step': 5, 'tokens': 9}]: from_step [5]: the first is 0",
    ),
}


@pytest.mark.parametrize(("overrides", "expected"), BAD.values(), ids=BAD.keys())
def test_one_problem_for_one_wrong_value(overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError, match="^tiny: 1 problem\n  " + re.escape(expected)):
        load_recipe("tiny", overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rl.prompts.count=64"],
        ["rl.prompts={kind: builtin, count: 200, min_terms: 2, max_terms: 2}"],
        ["rl.max_prompt_tokens=464"],
        ["rl.check_sync=true"],
        ["rl.openrlhf={ds.zero_stage: 3, vllm.gpu_memory_utilization: 0.5, critic.adam.lr: 1.0, eval.steps: 3}"],
        ["rl.openrlhf={reward.clip_range: [-1.5, 10], actor.min_lr_ratio: -0.00001}"],
        ["rl.algorithm=reinforce", "rl.samples_per_prompt=1"],
        ["rl.correction={level: seq, mode: mask}"],
        [FILE],
    ],
)
def test_what_is_right_beside_it(overrides: list[str]) -> None:
    assert load_recipe("tiny", overrides).rl is not None
