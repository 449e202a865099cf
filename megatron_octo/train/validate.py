"""Loss on each source's held-out documents."""

from collections.abc import Mapping

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_octo.data.blend import SampleSource
from megatron_octo.recipe.train import TrainSection
from megatron_octo.train.batches import batch_stream
from megatron_octo.train.forward import reduce_over_world, run_micro_batches


@torch.no_grad()
def validation_losses(
    model: list[DistributedDataParallel],
    datasets: Mapping[str, SampleSource],
    train: TrainSection,
    device: torch.device,
) -> dict[str, float]:
    """Mean cross-entropy a source, over `train.validation.batches` global batches. All ranks call it."""
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
