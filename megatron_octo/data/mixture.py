"""The mixture of a stage: which prepared sources it draws from, and the fingerprint of the order of its samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.data.manifest import SourceManifest, SplitName, read_manifest
from megatron_octo.data.settings import current_manifest
from megatron_octo.data.tokenizer_file import read_tokenizer_file
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.files import sha256_of_json
from megatron_octo.runtime.run_folder import RunFolder

NO_PADDING = -1
"""A pad id that no text has. Samples are always full, and a pad id equal to the end of document (Megatron's habit)
would silently take every document's end out of the loss."""


@dataclass(frozen=True)
class TokenIds:
    """The part of a tokenizer that Megatron's datasets ask for."""

    vocab_size: int
    eod: int
    pad: int = NO_PADDING

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        """Megatron hashes these into the names of its index files."""
        return {"vocab_size": self.vocab_size, "eod": self.eod}


@dataclass(frozen=True)
class MixtureSource:
    """One prepared source and its share of the tokens."""

    name: str
    weight: float
    prefixes: tuple[Path, ...]
    """Paths of its .bin/.idx pairs, without the suffix."""
    sha256: str
    """Digest of the source's files in one split."""


@dataclass(frozen=True)
class MixtureSources:
    """The sources of a mixture, in the recipe's order."""

    training: tuple[MixtureSource, ...]
    validation: tuple[MixtureSource, ...]


def read_mixture_sources(recipe: Recipe, run: RunFolder, stage: str) -> MixtureSources:
    """The prepared sources of a stage's mixture.

    Raises:
        DataError: a source that is not prepared, or was prepared with other settings than the recipe has now.
    """
    training, validation = [], []
    for name, weight in recipe.stages[stage].mixture.items():
        folder = run.source(name)
        manifest = current_manifest(recipe, run, name)  # hashes the files that its settings name
        if manifest.tokenizer.vocab_size > recipe.model.architecture.vocab_size:
            raise DataError(
                f"{folder}: tokenized with {manifest.tokenizer.vocab_size} tokens, and the model has "
                f"{recipe.model.architecture.vocab_size}; prepare the data again"
            )
        training.append(_mixture_source(name, weight, folder, manifest, "train"))
        validation.append(_mixture_source(name, weight, folder, manifest, "validation"))
    return MixtureSources(tuple(training), tuple(validation))


def _mixture_source(
    name: str, weight: float, folder: Path, manifest: SourceManifest, split: SplitName
) -> MixtureSource:
    files = (manifest.train if split == "train" else manifest.validation).files
    digest = sha256_of_json([[file.path, file.sha256] for file in files])
    return MixtureSource(name, weight, tuple(manifest.prefixes(folder, split)), digest)


def read_token_ids(recipe: Recipe, run: RunFolder) -> TokenIds:
    """Vocabulary size and end-of-document id for Megatron's datasets.

    Raises:
        DataError: no tokenizer in the run folder, or one without the end-of-document token.
    """
    path = run.tokenizer_file
    if not path.is_file():
        raise DataError(f"{path}: there is no tokenizer; run `octo data prepare {recipe.name}` first")
    eod = read_tokenizer_file(path, "the run's tokenizer").token_to_id(recipe.model.end_of_document)
    if eod is None:
        raise DataError(f"{path}: {recipe.model.end_of_document!r} is not one of its tokens; set model.end_of_document")
    return TokenIds(vocab_size=recipe.model.architecture.vocab_size, eod=eod)


def count_samples(recipe: Recipe, stage: str) -> int:
    """Training samples of a stage."""
    return recipe.steps(stage) * recipe.train.global_batch_size


def count_epochs(recipe: Recipe, run: RunFolder, stage: str) -> dict[str, float]:
    """Passes over each source's training text that a stage makes."""
    budget = recipe.steps(stage) * recipe.train.tokens_per_step
    return {
        name: weight * budget / max(read_manifest(run.source(name)).train.tokens, 1)
        for name, weight in recipe.stages[stage].mixture.items()
        if math.isfinite(weight)
    }


def data_fingerprint(
    sources: Sequence[MixtureSource], *, samples: int, sequence_length: int, global_batch_size: int, seed: int
) -> dict[str, Any]:
    """Everything that decides the order of a stage's samples, with a digest of it all.

    It is fixed when a stage begins and compared at every resume: one more sample can push a source into another epoch,
    and that reorders all of it.
    """
    parts: dict[str, Any] = {
        "source_order": [s.name for s in sources],  # a key of its own: a digest of a mapping does not see the order
        "sources": {s.name: {"weight": s.weight, "sha256": s.sha256} for s in sources},
        "samples": samples,
        "sequence_length": sequence_length,
        "global_batch_size": global_batch_size,
        "seed": seed,
    }
    return {**parts, "sha256": sha256_of_json(parts)}


def fingerprint_changes(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Describe what changed between two fingerprints; empty when they agree."""
    if stored["sha256"] == present["sha256"]:
        return []
    found = [
        f"{key} was {stored[key]}, is {present[key]}"
        for key in ("samples", "sequence_length", "global_batch_size", "seed")
        if stored[key] != present[key]
    ]
    before, after = stored["sources"], present["sources"]
    if stored["source_order"] != present["source_order"]:
        found.append(f"sources were {', '.join(stored['source_order'])}, are {', '.join(present['source_order'])}")
    for name in before.keys() & after.keys():
        if before[name]["weight"] != after[name]["weight"]:
            found.append(f"the share of {name} was {before[name]['weight']}, is {after[name]['weight']}")
        if before[name]["sha256"] != after[name]["sha256"]:
            found.append(f"the files of {name} are not those that training began with")
    return found
