"""Micro-batches of a step for this data-parallel rank, in an order that no layout changes."""

from collections.abc import Iterator

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_octo.data.datasets import SampleSource
from megatron_octo.recipe.train import TrainSection

Batch = dict[str, torch.Tensor]


class StepSampler(torch.utils.data.Sampler[list[int]]):
    """Sample numbers of each micro-batch from a step on.

    Step k is samples [k * global_batch_size, (k + 1) * global_batch_size). Its micro-batch m on data-parallel rank r
    starts at m * micro_batch_size * ranks + r * micro_batch_size.
    """

    def __init__(self, train: TrainSection, *, first_step: int, steps: int) -> None:
        self.train, self.first_step, self.steps = train, first_step, steps
        self.rank = parallel_state.get_data_parallel_rank()
        self.ranks = parallel_state.get_data_parallel_world_size()

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            yield from self.of_step(step)

    def of_step(self, step: int) -> Iterator[list[int]]:
        """Micro-batches of one step."""
        size, stride = self.train.micro_batch_size, self.train.micro_batch_size * self.ranks
        first = step * self.train.global_batch_size + self.rank * size
        for start in range(first, (step + 1) * self.train.global_batch_size, stride):
            yield list(range(start, start + size))


def micro_batches(train: TrainSection) -> int:
    """Micro-batches of a step on each data-parallel rank."""
    ranks: int = parallel_state.get_data_parallel_world_size()
    return train.global_batch_size // (train.micro_batch_size * ranks)


def batch_stream(
    samples: SampleSource, train: TrainSection, device: torch.device, *, first_step: int, steps: int
) -> Iterator[Batch]:
    """Micro-batches from `first_step` on: `tokens` and `labels`, (micro_batch_size, sequence_length) int64.

    Each tensor and pipeline rank reads its own copy: the files are memory-mapped, and reading costs less than
    sending. Context-parallel ranks keep their part of the sequence, and `position_ids` say which.
    """
    loader: torch.utils.data.DataLoader[Batch] = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=StepSampler(train, first_step=first_step, steps=steps),
        num_workers=train.data_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=train.data_workers > 0,
    )
    positions = torch.arange(train.sequence_length, device=device).expand(train.micro_batch_size, -1)
    for batch in loader:
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        batch["position_ids"] = positions
        if parallel_state.get_context_parallel_world_size() > 1:
            batch = get_batch_on_this_cp_rank(batch)
        yield batch


def _collate(samples: list[Batch]) -> Batch:
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("tokens", "labels")}
