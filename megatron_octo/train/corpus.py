"""A stage's prepared sources, as the blend wants them."""

import math
from typing import Literal

from tokenizers import Tokenizer

from megatron_octo.data.blend import BlendedSource, TokenIds
from megatron_octo.data.manifest import read_manifest
from megatron_octo.data.settings import current_manifest
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.files import sha256_of_json
from megatron_octo.runtime.run_folder import RunFolder


def stage_sources(
    recipe: Recipe, run: RunFolder, stage: str, split: Literal["train", "validation"]
) -> list[BlendedSource]:
    """The prepared sources of a stage's mixture, in the recipe's order.

    Raises:
        DataError: a source that is not prepared, or was prepared with other settings than the recipe has now.
    """
    mixture = recipe.stages[stage].mixture
    sources = []
    for name, weight in mixture.items():
        folder = run.source(name)
        manifest = current_manifest(recipe, run, name)
        if manifest.tokenizer.vocab_size > recipe.model.architecture.vocab_size:
            raise DataError(
                f"{folder}: tokenized with {manifest.tokenizer.vocab_size} tokens, and the model has "
                f"{recipe.model.architecture.vocab_size}; prepare the data again"
            )
        part = manifest.train if split == "train" else manifest.validation
        digest = sha256_of_json([[file.path, file.sha256] for file in part.files])
        prefixes = tuple(manifest.prefixes(folder, split))
        sources.append(BlendedSource(name=name, weight=weight, prefixes=prefixes, digest=digest))
    return sources


def token_ids(recipe: Recipe, run: RunFolder) -> TokenIds:
    """Vocabulary size and end-of-document id for Megatron's datasets.

    Raises:
        DataError: no tokenizer in the run folder.
    """
    path = run.tokenizer / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no tokenizer; run `octo data prepare {recipe.name}` first")
    eod = Tokenizer.from_file(str(path)).token_to_id(recipe.model.end_of_document)
    if eod is None:
        raise DataError(f"{path}: {recipe.model.end_of_document!r} is not one of its tokens; set model.end_of_document")
    return TokenIds(vocab_size=recipe.model.architecture.vocab_size, eod=eod)


def epochs(recipe: Recipe, run: RunFolder, stage: str) -> dict[str, float]:
    """How often a stage goes through each source's training text."""
    budget = recipe.steps(stage) * recipe.train.tokens_per_step
    return {
        name: weight * budget / max(read_manifest(run.source(name)).train.tokens, 1)
        for name, weight in recipe.stages[stage].mixture.items()
        if math.isfinite(weight)
    }
