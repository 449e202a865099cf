"""`octo data show`: samples of a stage as text, as the model sees them."""

from collections.abc import Sequence

from megatron_octo.data.datasets import build_mixture
from megatron_octo.data.mixture import count_samples, read_mixture_sources, read_token_ids
from megatron_octo.data.tokenizer_file import read_tokenizer_file
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.run_folder import RunFolder


def show_samples(recipe: Recipe, run: RunFolder, stage: str, numbers: Sequence[int]) -> None:
    """Print samples by number. Sample n is in step n // global_batch_size + 1.

    Raises:
        DataError: a number that the stage does not reach, or data that is not prepared.
    """
    count = count_samples(recipe, stage)
    for number in numbers:
        if not 0 <= number < count:
            raise DataError(f"sample {number}: {stage} has samples 0 to {count - 1}; choose one of them")
    mixture = build_mixture(
        read_mixture_sources(recipe, run, stage).training,
        samples=count,
        sequence_length=recipe.train.sequence_length,
        seed=recipe.seed,
        tokens=read_token_ids(recipe, run),
        cache=run.index_cache(stage),
    )
    tokenizer = read_tokenizer_file(run.tokenizer_file, "the run's tokenizer")
    for number in numbers:
        source = mixture.source_names[mixture.source_of_sample[number]]
        step = number // recipe.train.global_batch_size + 1
        print(f"--- sample {number}, step {step}, source {source}")
        print(tokenizer.decode(mixture.samples[number]["tokens"].tolist(), skip_special_tokens=False))
