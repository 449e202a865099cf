"""Each kind of bad recipe is refused with the key, the value and the way out."""

import re
from pathlib import Path

import pytest

from megatron_octo.errors import RecipeError
from megatron_octo.recipe import load_recipe

ONE = "stages={stable: {parent: base, tokens: 1M, mixture: {web: 1.0}}}"
SHAPE = "model.architecture."

# what is laid over `tiny`, and what the message must hold: key, value, way out
BAD = {
    "unknown key": (["train.micro_batchsize=4"], ["train.micro_batchsize = 4", "did you mean 'micro_batch_size'?"]),
    "unknown key with no neighbour": (["parallel.zzz=1"], ["parallel.zzz = 1", "known here: ", "tensor"]),
    "unknown key at the top": (["stage=1"], ["stage = 1", "did you mean 'stages'?"]),
    "unknown key of a source": (
        ["data.sources.web.document=3"],
        ["data.sources.web.document = 3", "did you mean 'documents'?"],
    ),
    "unknown key of a format": (
        ["data.sources.web={kind: jsonl, paths: [a], format: {kind: qa, questions: q}}"],
        ["data.sources.web.format.questions = 'q'", "did you mean 'question'?"],
    ),
    "bad type": (["train.sequence_length=long"], ["train.sequence_length = 'long'", "integer"]),
    "bad token count": (["stages.stable.tokens=plenty"], ["stages.stable.tokens = 'plenty'", "200B"]),
    "negative rate": (["train.learning_rate=-1e-3"], ["train.learning_rate = -0.001", "greater than 0"]),
    "bad choice": (["train.precision=fp4"], ["train.precision = 'fp4'", "'fp8'"]),
    "missing key": (["model={initialize: random}"], ["model.tokenizer", "missing", "add it"]),
    "bad name": (["name=Tiny Run"], ["name = 'Tiny Run'", "pattern"]),
    "negative share": (["stages.stable.mixture.qa=-0.3"], ["stages.stable.mixture.qa = -0.3", "greater than 0"]),
    "weights": (["stages.stable.mixture.web=0.5"], ["stages.stable.mixture", "sum to 0.9", "make them sum to 1"]),
    "empty mixture": (["stages.stable.mixture={}"], ["stages.stable.mixture = {}", "at least 1"]),
    "missing parent": (
        ["stages.decay-long.parent=stabel"],
        ["stages.decay-long.parent = 'stabel'", "no such stage", "did you mean 'stable'?"],
    ),
    "own ancestor": (
        ["stages.stable.parent=decay-long"],
        ["stages.stable.parent = 'decay-long'", "stable -> decay-long -> stable", "'base'"],
    ),
    "own parent": (["stages.stable.parent=stable"], ["own ancestor", "stable -> stable"]),
    "stage named base": (["stages.base={parent: stable, tokens: 1M, mixture: {web: 1}}"], ["'base'", "another name"]),
    "heads over tensor": (["parallel={tensor: 3}"], ["parallel.tensor = 3", "num_attention_heads 4", "divisor"]),
    "kv heads over tensor": (
        ["parallel={tensor: 3}", SHAPE + "num_attention_heads=6", SHAPE + "head_dim=32"],
        ["parallel.tensor = 3", "num_key_value_heads 2", "choose one that does"],
    ),
    "layers over pipeline": (["parallel={pipeline: 3}"], ["parallel.pipeline = 3", "num_hidden_layers 4", "divisor"]),
    "a stage's own layout": (
        ["stages.decay-long.parallel={pipeline: 3}"],
        ["stages.decay-long.parallel.pipeline = 3", "num_hidden_layers 4"],
    ),
    "batch": (
        ["parallel.data=3"],
        ["train.global_batch_size = 32", "3 data-parallel ranks", "change one of the three"],
    ),
    "micro over global": (["train.micro_batch_size=64"], ["train.micro_batch_size = 64", "lower it"]),
    "unknown source": (
        ["stages.stable.mixture={webb: 1.0}"],
        ["stages.stable.mixture.webb = 1.0", "no such source", "did you mean 'web'?"],
    ),
    "unknown data kind": (["data.sources.web={kind: sql}"], ["data.sources.web", "'sql'", "'jsonl', 'parquet', 'hub'"]),
    "rate jump at a branch": (
        ["stages.decay-long.learning_rate.peak=1e-3"],
        ["stages.decay-long.learning_rate.peak = 0.001", "'stable' ends at 0.002", "set it to 0.002"],
    ),
    "rate jump after a decay": (
        ["stages.more={parent: decay-long, tokens: 1M, mixture: {web: 1.0}}"],
        ["stages.more.learning_rate.peak = 0.002", "ends at 0.0002", "or give the stage a warmup"],
    ),
    "mark beyond the parent": (
        ["stages.decay-long.parent={stage: stable, at: 4M}"],
        ["stages.decay-long.parent.at = 4000000", "2000000 tokens of 'stable'", "lower it"],
    ),
    "mark on the base": (["stages.stable.parent.at=1M"], ["stages.stable.parent.at = 1000000", "leave it out"]),
    "virtual pipeline alone": (
        ["parallel={pipeline: 1, virtual_pipeline: 2}"],
        ["parallel.virtual_pipeline = 2", "pipeline is 1", "raise both"],
    ),
    "virtual pipeline over layers": (
        ["parallel={pipeline: 2, virtual_pipeline: 4}"],
        ["= 8 does not divide num_hidden_layers 4"],
    ),
    "virtual pipeline over micro-batches": (
        ["parallel={pipeline: 2, virtual_pipeline: 2}", "train.micro_batch_size=32"],
        ["parallel.virtual_pipeline = 2", "micro-batches (1)", "multiple of pipeline (2)"],
    ),
    "sequence alone": (["parallel={sequence: true}"], ["parallel.sequence = True", "one tensor rank", "raise tensor"]),
    "context": (
        ["parallel={context: 3}"],
        ["parallel.context = 3", "train.sequence_length 128", "choose a divisor"],
    ),
    "sequence over tensor": (
        ["parallel={tensor: 4, sequence: true}", "train.sequence_length=126"],
        ["parallel.tensor = 4", "does not divide train.sequence_length 126;", "choose a divisor"],
    ),
    "sequence over context and tensor": (
        ["parallel={tensor: 4, sequence: true, context: 2}", "train.sequence_length=124", "train.precision=bf16"],
        ["parallel.tensor = 4", "does not divide train.sequence_length 124 / parallel.context 2;", "choose a divisor"],
    ),
    "warmup": (
        ["stages.stable.learning_rate.warmup=2M"],
        ["stages.stable.learning_rate.warmup = 2000000", "2000000 tokens", "shorten it"],
    ),
    "sequence beyond positions": (
        ["train.sequence_length=1024"],
        ["train.sequence_length = 1024", "max_position_embeddings 512", "shorten it"],
    ),
    "kv heads over heads": ([SHAPE + "num_key_value_heads=3"], ["num_key_value_heads = 3", "num_attention_heads 4"]),
    "heads over hidden": (
        [SHAPE + "num_attention_heads=6"],
        ["num_attention_heads = 6", "hidden_size 128", "head_dim"],
    ),
    "odd head": ([SHAPE + "head_dim=33"], ["model.architecture.head_dim = 33", "make it even"]),
    "no base": (["model.initialize=base"], ["model.initialize = 'base'", "model.base is not set", "=random"]),
    "no micro-batches": (
        ["train.micro_batch_size=5"],
        ["train.micro_batch_size = 5", "does not divide", "global_batch"],
    ),
    "context without a kernel": (
        ["parallel={context: 2}"],
        ["parallel.context = 2", "no attention kernel for train.precision fp32", "bf16"],
    ),
    "fp8 of odd widths": (
        ["train.precision=fp8", "parallel={tensor: 4}", SHAPE + "intermediate_size=96"],
        ["train.precision = 'fp8'", "intermediate_size / tensor to be a multiple of 16, and it is 24", "bf16"],
    ),
    "fp8 of few tokens": (
        ["train.precision=fp8", "train.sequence_length=127", "train.micro_batch_size=1"],
        ["train.precision = 'fp8'", "tokens of a micro-batch on a rank to be a multiple of 8, and it is 127"],
    ),
    "held-out problems": (
        ["data.heldout_problems=99999"],
        ["data.heldout_problems = 99999", "less than or equal to 50000"],
    ),
    "practice problems": (
        ["data.practice_problems=801"],
        ["data.practice_problems = 801", "less than or equal to 800"],
    ),
    "qa without its places": (
        ["data.sources.web={kind: jsonl, paths: [a], format: {kind: qa, template: 'Q:{question}'}}"],
        ["data.sources.web.format.template = 'Q:{question}'", "{question} and {answer} once each", "e.g. 'Question:"],
    ),
    "a source with a taken name": (
        ["data.sources.heldout={kind: jsonl, paths: [a]}"],
        ["data.sources.heldout = 'heldout'", "cannot be a folder under data/", "rename the source"],
    ),
    "a source with nothing to train on": (
        ["data.sources.web.documents=64"],
        ["data.sources.web.validation_documents = 64", "to 64 documents", "lower it, or raise the limit"],
    ),
    "a limit with nothing to train on": (
        ["data.sources.web={kind: jsonl, paths: [a], max_documents: 9}"],
        ["data.sources.web.validation_documents = 64", "to 9 documents", "raise the limit"],
    ),
    "RoPE that is not built": (
        [SHAPE + "rope_scaling={factor: 8.0, low_freq_factor: 2.0}"],
        [SHAPE + "rope_scaling.low_freq_factor = 2.0", "computes with 1.0 only", "cannot be trained here"],
    ),
    "biases of another family": (
        [SHAPE + "attention_bias=true"],
        [SHAPE + "attention_bias = True", "a llama model has no biases on query, key and value", "set it to false"],
    ),
    "no biases": (
        [SHAPE + "model_type=qwen2"],
        [SHAPE + "attention_bias = False", "a qwen2 model has", "set it to true"],
    ),
    "vocabulary": (
        [SHAPE + "vocab_size=259"],
        [SHAPE + "vocab_size = 259", "builtin:bytes has 260 tokens", "raise it"],
    ),
    "end of document": (
        ["model.end_of_document=<end>"],
        ["model.end_of_document = '<end>'", "not one token of builtin:bytes", "<|endoftext|>"],
    ),
    "built-in tokenizer": (["model.tokenizer=builtin:byte"], ["model.tokenizer = 'builtin:byte'", "set builtin:bytes"]),
    "override without =": (["train.learning_rate"], ["'train.learning_rate'", "write key.sub=value"]),
    "override without key": (["=3"], ["'=3'", "write key.sub=value"]),
    "override of no YAML": (["train.learning_rate=[1"], ["'train.learning_rate=[1'", "not YAML"]),
    "override below a value": (["name.first=a"], ["'name.first=a'", "name is 'tiny'", "no keys"]),
}


@pytest.mark.parametrize(("overrides", "parts"), BAD.values(), ids=BAD.keys())
def test_the_message_says_key_value_and_way_out(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", overrides)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


SEVERAL = {"missing key": 3, "own ancestor": 2, "context": 2}
"""Entries that are wrong in more than one way."""


@pytest.mark.parametrize("name", [name for name in BAD if not name.startswith("override ")])
def test_one_problem_for_one_wrong_value(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", BAD[name][0])
    assert len(str(caught.value).splitlines()) == 1 + SEVERAL.get(name, 1)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(RecipeError, match=r"^tiny: 3 problems\n") as caught:
        load_recipe("tiny", ["stages.stable.mixture={webb: 0.5}", "parallel={pipeline: 3}"])
    assert len(str(caught.value).splitlines()) == 4


def test_a_name_that_is_not_shipped() -> None:
    with pytest.raises(RecipeError, match=r"'octothinker-2b' is neither .* did you mean 'octothinker-[138]b'"):
        load_recipe("octothinker-2b")
    with pytest.raises(RecipeError, match=r"shipped: octothinker-1b, .*, qwen2\.5-3b, tiny"):
        load_recipe("@@@")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("- a\n- b\n", "a recipe is a mapping of keys, this is list"),
        ("", "a recipe is a mapping of keys, this is NoneType"),
        ("name: a\nseed: 1\nname: b\n", "'name' is written twice (line 3); keep one of them"),
        ("train:\n  loss: logits\n  loss: logits\n", "'loss' is written twice (line 3)"),
        ("[a, b]: 1\n", "cannot be a key"),
        ("extends: tiny\nname: x\nextends: tiny\n", "'extends' is written twice"),
        ("extends: nowhere\n", "'nowhere' is neither a shipped recipe nor a .yaml file"),
        ("extends: absent.yaml\n", "absent.yaml' is neither"),
    ],
)
def test_files_that_cannot_be_read_as_a_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe(str(path))


def test_recipes_that_extend_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml -> .*b\.yaml -> .*a\.yaml goes in a circle; break it"):
        load_recipe(str(tmp_path / "a.yaml"))
