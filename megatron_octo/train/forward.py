"""Forward and backward of a step through Megatron's schedules, its loss on every rank, and validation losses."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_octo.data.datasets import SampleSource
from megatron_octo.recipe.train import TrainSection
from megatron_octo.train.batches import Batch, batch_stream, micro_batches

LossRecord = dict[str, torch.Tensor]


def forward_step(batches: Iterator[Batch], model: DistributedDataParallel) -> tuple[torch.Tensor, Any]:
    """Megatron's forward-step function: one micro-batch through this rank's part of the model."""
    batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(_mean_loss)


def _mean_loss(losses_BS: torch.Tensor) -> tuple[torch.Tensor, LossRecord]:
    # every sample is full, so the mean over a micro-batch weighs every token of the global batch alike
    loss = losses_BS.float().mean()
    # a copy: Megatron's schedule divides the returned loss in place by the number of micro-batches
    # and multiplies it by the context-parallel size, for losses that are local sums over a global count
    return loss / parallel_state.get_context_parallel_world_size(), {"loss": loss.detach().clone()}


def run_micro_batches(
    model: list[DistributedDataParallel], batches: list[Iterator[Batch]], train: TrainSection, *, forward_only: bool
) -> list[LossRecord]:
    """All micro-batches of a step. Returns their losses on the last pipeline stage, nothing elsewhere."""
    records: list[LossRecord] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=batches if len(model) > 1 else batches[0],
        model=model,
        num_microbatches=micro_batches(train),
        seq_length=train.sequence_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=forward_only,
    )
    return records


def reduce_over_world(records: list[LossRecord], stop_requested: bool, device: torch.device) -> tuple[float, bool]:
    """The global batch's mean loss, and whether any rank was asked to stop: one small all-reduce for both."""
    reports_loss = bool(records) and parallel_state.get_tensor_model_parallel_rank() == 0
    loss = torch.stack([r["loss"] for r in records]).double().mean() if reports_loss else torch.zeros((), device=device)
    totals = torch.tensor([0.0, float(reports_loss), float(stop_requested)], dtype=torch.float64, device=device)
    totals[0] = loss
    torch.distributed.all_reduce(totals)
    total, count, stops = totals.tolist()
    return total / count, stops > 0


@torch.no_grad()
def validation_losses(
    model: list[DistributedDataParallel],
    datasets: Mapping[str, SampleSource],
    train: TrainSection,
    device: torch.device,
) -> dict[str, float]:
    """Mean cross-entropy of each source, over `train.validation.batches` global batches. Every rank calls it."""
    for chunk in model:
        chunk.eval()
    losses = {}
    for source, samples in datasets.items():
        batches = train.validation.batches
        streams = [batch_stream(samples, train, device, first_step=0, steps=batches) for _ in model]
        total = 0.0
        for _ in range(batches):
            records = run_micro_batches(model, streams, train, forward_only=True)
            loss, _ = reduce_over_world(records, stop_requested=False, device=device)
            total += loss
        losses[source] = total / batches
    for chunk in model:
        chunk.train()
    return losses
