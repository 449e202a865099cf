"""The order of a stage's samples, as a fingerprint."""

from collections.abc import Sequence
from typing import Any

from megatron_octo.data.blend import BlendedSource, fingerprint
from megatron_octo.recipe import Recipe


def data_order(recipe: Recipe, sources: Sequence[BlendedSource], stage: str) -> dict[str, Any]:
    """The fingerprint of a stage's data: fixed when it begins, compared at every resume."""
    return fingerprint(
        sources,
        samples=recipe.steps(stage) * recipe.train.global_batch_size,
        sequence_length=recipe.train.sequence_length,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.seed,
    )
