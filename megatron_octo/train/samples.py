"""Samples of a stage as text: what the model sees at a step."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from megatron_octo.data.blend import build_blend
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.corpus import stage_sources, token_ids


def show_samples(recipe: Recipe, run: RunFolder, stage: str, numbers: Sequence[int]) -> None:
    """Print samples by number. Sample n is in step n // global_batch_size + 1."""
    count = recipe.steps(stage) * recipe.train.global_batch_size
    for number in numbers:
        if not 0 <= number < count:
            raise DataError(f"sample {number}: {stage} has samples 0 to {count - 1}; choose one of them")
    blend = build_blend(
        stage_sources(recipe, run, stage, "train"),
        samples=count,
        sequence_length=recipe.train.sequence_length,
        seed=recipe.seed,
        tokens=token_ids(recipe, run),
        cache=run.stage(stage) / "cache",
    )
    tokenizer = Tokenizer.from_file(str(run.tokenizer / "tokenizer.json"))
    for number in numbers:
        source = blend.source_names[blend.source_of_sample[number]]
        step = number // recipe.train.global_batch_size + 1
        print(f"--- sample {number}, step {step}, source {source}")
        print(tokenizer.decode(blend.samples[number]["tokens"].tolist(), skip_special_tokens=False))
