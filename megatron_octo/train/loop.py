"""The mid-training loop of one stage, from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer

from megatron_octo.data.blend import Blend
from megatron_octo.errors import RecipeError, TrainingHalted
from megatron_octo.recipe import Recipe, Stage
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.runtime.hang_watch import HangWatch
from megatron_octo.runtime.records import as_ranges
from megatron_octo.train.batches import Batch, StepSampler, batch_stream
from megatron_octo.train.forward import LossRecord, reduce_over_world, run_micro_batches
from megatron_octo.train.guards import SpikeDetector
from megatron_octo.train.optimizer import learning_rates, set_learning_rate, set_weight_decay
from megatron_octo.train.throughput import Stopwatch

StepRecord = dict[str, Any]


@dataclass
class Progress:
    """How far a stage has come; what a checkpoint's manifest stores besides the tensors."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    wall_seconds: float = 0.0
    spikes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """What happens around the steps: all but `on_step` are called on every rank."""

    on_step: Callable[[StepRecord], None]
    on_checkpoint: Callable[[Progress], None]
    on_validation: Callable[[Progress], object]
    on_spike: Callable[[int, float, float], None]
    stop_requested: Callable[[], bool]
    poll: Callable[[], None]
    hang: HangWatch


@dataclass(frozen=True)
class Setup:
    """All that the loop works on."""

    recipe: Recipe
    stage_name: str
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    blend: Blend
    device: torch.device
    lineage_tokens: int
    """Tokens consumed by the ancestors."""
    peak_flops: float | None
    checkpoint_steps: frozenset[int]
    stop_after_step: int | None = None

    @property
    def stage(self) -> Stage:
        """The stage being trained."""
        return self.recipe.stages[self.stage_name]


def train_steps(setup: Setup, progress: Progress, hooks: Hooks) -> bool:
    """Train a stage from `progress.step` to its end. Returns whether the end was reached.

    Raises:
        TrainingHalted: the loss or the gradient norm is not finite. No checkpoint is written of such a step.
    """
    recipe, train, stage = setup.recipe, setup.recipe.train, setup.stage
    steps = recipe.steps(setup.stage_name)
    every, validate_every = train.checkpointing.every_steps, train.validation.every_steps
    config = setup.model[0].config
    config.finalize_model_grads_func = finalize_model_grads
    if setup.device.type == "cuda":
        no_sync: list[Any] = [chunk.no_sync for chunk in setup.model]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    flops_per_token = recipe.model.architecture.flops_per_token(train.sequence_length)
    set_weight_decay(setup.optimizer, train.optimizer.weight_decay)
    spikes = SpikeDetector(train.guards)
    batches: list[Iterator[Batch]] = [
        batch_stream(setup.blend.samples, train, setup.device, first_step=progress.step, steps=steps)
        for _ in setup.model
    ]
    watch = Stopwatch()

    while progress.step < steps:
        step = progress.step
        hooks.hang.begin_step()
        rate = learning_rate_of_step(stage, step, train)
        set_learning_rate(setup.optimizer, rate)

        for chunk in setup.model:
            chunk.zero_grad_buffer()
        setup.optimizer.zero_grad()
        records = run_micro_batches(setup.model, batches, train, forward_only=False)
        loss, stop = reduce_over_world(records, hooks.stop_requested(), setup.device)
        if not math.isfinite(loss):
            raise TrainingHalted(_name_the_batch(setup, step, loss, records))
        _, grad_norm, _ = setup.optimizer.step()
        grad_norm = float(grad_norm) if grad_norm is not None else 0.0
        if not math.isfinite(grad_norm):
            raise TrainingHalted(_name_the_batch(setup, step, loss, records, f"gradient norm {grad_norm}"))

        progress.step = step + 1
        progress.last_loss = loss
        progress.first_loss = loss if progress.first_loss is None else progress.first_loss
        seconds = watch.lap()
        progress.wall_seconds += seconds
        if (deviations := spikes.observe(loss)) is not None:
            progress.spikes.append(progress.step)
            hooks.on_spike(progress.step, loss, deviations)
        hooks.on_step(_record(setup, step, loss, rate, grad_norm, seconds, flops_per_token))
        hooks.hang.end_step()

        at_end = progress.step == steps
        stop = stop or progress.step == setup.stop_after_step
        if validate_every and progress.step % validate_every == 0 and not at_end:
            hooks.on_validation(progress)
        if at_end or stop or progress.step % every == 0 or progress.step in setup.checkpoint_steps:
            hooks.on_checkpoint(progress)
        hooks.poll()
        if stop and not at_end:
            return False
        watch.restart()
    _check_last_rate(setup, steps)
    return True


def _record(
    setup: Setup, step: int, loss: float, rate: float, grad_norm: float, seconds: float, flops_per_token: float
) -> StepRecord:
    train = setup.recipe.train
    batch, tokens = train.global_batch_size, train.tokens_per_step
    per_second = tokens / seconds
    return {
        "step": step + 1,
        "stage_tokens": (step + 1) * tokens,
        "tokens": setup.lineage_tokens + (step + 1) * tokens,
        "loss": loss,
        "lr": rate,
        "grad_norm": grad_norm,
        "tokens_per_second": per_second,
        "mfu": per_second * flops_per_token / setup.peak_flops if setup.peak_flops else None,
        "source_tokens": setup.blend.tokens_by_source(step * batch, (step + 1) * batch, train.sequence_length),
        "seconds": seconds,
        "time": time.time(),
    }


def _name_the_batch(setup: Setup, step: int, loss: float, records: list[LossRecord], what: str | None = None) -> str:
    """Which samples a bad step was made of; where micro-batches' own losses are bad, those alone."""
    train = setup.recipe.train
    mine = StepSampler(train, first_step=step, steps=step + 1)
    bad = [
        ids
        for ids, record in zip(mine.of_step(step), records, strict=False)
        if not math.isfinite(float(record["loss"]))
    ]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, bad)
    samples = sorted({i for part in gathered for ids in part for i in ids})
    if not samples:
        samples = list(range(step * train.global_batch_size, (step + 1) * train.global_batch_size))
    names = setup.blend.source_names
    sources = {names[setup.blend.source_of_sample[i]] for i in samples}
    return (
        f"{setup.stage_name}: {what or f'loss {loss}'} at step {step + 1}, in samples {as_ranges(samples)} "
        f"(sources {', '.join(sorted(sources))}); nothing was saved of this step. "
        "Look at those samples (`octo data show`), lower train.learning_rate, or go on from an earlier checkpoint"
    )


def _check_last_rate(setup: Setup, steps: int) -> None:
    """The stage ended where its shape says, in the optimizer itself."""
    shape = setup.stage.learning_rate
    peak = shape.peak or setup.recipe.train.learning_rate
    # worked out here, not taken from the schedule that wrote it
    expected = peak if shape.shape == "constant" or steps == 1 else peak * shape.floor
    present = learning_rates(setup.optimizer)
    if any(abs(rate - expected) > 1e-9 * expected for rate in present):
        raise RecipeError(f"{setup.stage_name} ended at learning rates {present}, and its shape says {expected}")
