"""Megatron's datasets over a mixture: one of all training samples in a fixed order, and one a source for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_octo.data.index_cache import drop_damaged_index, record_index
from megatron_octo.data.mixture import MixtureSource, TokenIds
from megatron_octo.errors import DataError
from megatron_octo.runtime.files import sha256_of_json


class SampleSource(Protocol):
    """A dataset that batches are read from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Mixture:
    """The training samples of a stage, in order: sample i is the same on every rank and at every layout."""

    samples: SampleSource
    source_names: tuple[str, ...]
    source_of_sample: np.ndarray
    """(samples,) int: index into `source_names`."""

    def tokens_by_source(self, first: int, last: int, sequence_length: int) -> dict[str, int]:
        """Tokens that samples [first, last) took from each source."""
        counts = np.bincount(self.source_of_sample[first:last], minlength=len(self.source_names))
        return {name: int(count) * sequence_length for name, count in zip(self.source_names, counts, strict=True)}


def build_mixture(
    sources: Sequence[MixtureSource], *, samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> Mixture:
    """The training samples of a stage. Every rank calls it; rank 0 writes the index files to `cache`."""
    dataset = _build(sources, samples, sequence_length, seed, tokens, cache)
    # one source alone comes back as a plain dataset, without an index of sources
    source_of_sample = getattr(dataset, "dataset_index", np.zeros(len(dataset), dtype=np.int16))
    owner = [i for i, source in enumerate(sources) for _ in source.prefixes]
    return Mixture(
        samples=dataset,
        source_names=tuple(s.name for s in sources),
        source_of_sample=np.asarray(owner)[np.asarray(source_of_sample)],
    )


def build_validation(
    sources: Sequence[MixtureSource], *, samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> dict[str, SampleSource]:
    """One dataset of `samples` samples for each source's held-out documents (repeated where they are few)."""
    return {s.name: _build([s], samples, sequence_length, seed, tokens, cache) for s in sources}


def _build(
    sources: Sequence[MixtureSource], samples: int, sequence_length: int, seed: int, tokens: TokenIds, cache: Path
) -> Any:
    paths = [str(prefix) for source in sources for prefix in source.prefixes]
    weights = [source.weight / len(source.prefixes) for source in sources for _ in source.prefixes]
    # Megatron names its index files by path and sizes, not by content: data prepared again under the same path would
    # be read by the old index
    cache = cache / sha256_of_json([[source.name, source.sha256] for source in sources])[:16]
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
