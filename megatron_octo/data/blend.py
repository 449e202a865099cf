"""A stage's mixture as one Megatron dataset whose order is fixed, and one dataset a source for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_octo.data.index_cache import drop_damaged_index, record_index
from megatron_octo.errors import DataError
from megatron_octo.runtime.files import sha256_of_json

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
        """What Megatron hashes into the names of its index files."""
        return {"vocab_size": self.vocab_size, "eod": self.eod}


@dataclass(frozen=True)
class BlendedSource:
    """One prepared source and its share of the tokens."""

    name: str
    weight: float
    prefixes: tuple[Path, ...]
    digest: str
    """SHA-256 of the source's training files."""


class SampleSource(Protocol):
    """What the batches are read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Blend:
    """The training samples of a stage, in order: sample i is the same on every rank and at every layout."""

    samples: SampleSource
    source_names: tuple[str, ...]
    source_of_sample: np.ndarray
    """(samples,) int: index into `source_names`."""

    def tokens_by_source(self, first: int, last: int, sequence_length: int) -> dict[str, int]:
        """Tokens that samples [first, last) took from each source."""
        counts = np.bincount(self.source_of_sample[first:last], minlength=len(self.source_names))
        return {name: int(count) * sequence_length for name, count in zip(self.source_names, counts, strict=True)}


def fingerprint(
    sources: Sequence[BlendedSource], *, samples: int, sequence_length: int, global_batch_size: int, seed: int
) -> dict[str, Any]:
    """Everything that decides the order of a stage's samples, with a digest of it all.

    A resume compares it: one more sample can push a source into another epoch, and that reorders all of it.
    """
    parts: dict[str, Any] = {
        "source_order": [s.name for s in sources],  # of itself: a digest of a mapping does not see its order
        "sources": {s.name: {"weight": s.weight, "sha256": s.digest} for s in sources},
        "samples": samples,
        "sequence_length": sequence_length,
        "global_batch_size": global_batch_size,
        "seed": seed,
    }
    return {**parts, "sha256": sha256_of_json(parts)}


def differences(stored: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """What changed between two fingerprints, in words; empty when they agree."""
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


def build_blend(
    sources: Sequence[BlendedSource], *, samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> Blend:
    """The blend of a stage. Every rank calls it; rank 0 writes the index files to `cache`."""
    blended = _build(sources, samples, sequence_length, seed, tokens, cache)
    # one source alone comes back as a plain dataset, without an index of sources
    source_of_sample = getattr(blended, "dataset_index", np.zeros(len(blended), dtype=np.int16))
    owner = [i for i, source in enumerate(sources) for _ in source.prefixes]
    return Blend(
        samples=blended,
        source_names=tuple(s.name for s in sources),
        source_of_sample=np.asarray(owner)[np.asarray(source_of_sample)],
    )


def build_validation(
    sources: Sequence[BlendedSource], *, samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> dict[str, SampleSource]:
    """One dataset of `samples` samples for each source's held-out documents (repeated where they are few)."""
    return {s.name: _build([s], samples, sequence_length, seed, tokens, cache) for s in sources}


def _build(
    sources: Sequence[BlendedSource], samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> Any:
    paths = [str(prefix) for source in sources for prefix in source.prefixes]
    weights = [source.weight / len(source.prefixes) for source in sources for _ in source.prefixes]
    # Megatron names its index files by path and sizes, not by content: data prepared again under the same path would
    # be read by the old index
    cache = cache / sha256_of_json([[source.name, source.digest] for source in sources])[:16]
    drop_damaged_index(cache)
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        blend_per_split=[(paths, weights if len(paths) > 1 else None), None, None],
        tokenizer=tokens,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(cache),
        # a share of few samples is rounded up by more than the default half per cent
        mid_level_dataset_surplus=max(0.005, 2.0 * len(paths) / samples),
    )
    try:
        train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [samples, None, None], lambda: True, config).build()
    except (IndexError, AssertionError, ValueError) as error:
        names = ", ".join(s.name for s in sources)
        raise DataError(
            f"{names}: Megatron-Core cannot build {samples} samples of {sequence_length} tokens: {error}"
        ) from error
    record_index(cache)
    if train is None or len(train) < samples:
        raise DataError(f"{len(train or [])} samples built where {samples} were asked; give the sources more text")
    return train
