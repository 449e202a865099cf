"""The mid-training loop of one stage, from top to bottom."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer

from megatron_octo.data.datasets import Mixture
from megatron_octo.errors import RecipeError, TrainingHalted
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.recipe.train import Guards
from megatron_octo.runtime.hang_watch import HangWatch
from megatron_octo.runtime.records import as_ranges
from megatron_octo.train.batches import Batch, StepSampler, batch_stream
from megatron_octo.train.forward import LossRecord, reduce_over_world, run_micro_batches
from megatron_octo.train.optimizer import learning_rates, set_learning_rate, set_weight_decay
from megatron_octo.train.plan import StagePlan
from megatron_octo.train.reporter import Reporter, StepRecord
from megatron_octo.train.throughput import Stopwatch

MINIMUM_HISTORY = 16
"""Fewer losses than this say nothing about their spread."""


@dataclass
class Progress:
    """How far a stage has come: the part of a checkpoint that is not tensors."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    wall_seconds: float = 0.0
    spikes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """Everything that the loop works with, built. The callbacks are called on every rank."""

    plan: StagePlan
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    mixture: Mixture
    device: torch.device
    peak_flops: float | None
    reporter: Reporter
    hang_watch: HangWatch
    stop_requested: Callable[[], bool]
    validate: Callable[[Progress], dict[str, float]]
    """Measures the validation loss of each source, and reports it."""
    save: Callable[[Progress], None]
    poll_save: Callable[[], None]
    """Completes an asynchronous save that has been written."""


def train_steps(trainer: Trainer, progress: Progress) -> bool:
    """Train a stage from `progress.step` to its end. Returns whether the end was reached.

    Raises:
        TrainingHalted: the loss or the gradient norm is not finite. No checkpoint is written of such a step.
    """
    plan, train, hang_watch = trainer.plan, trainer.plan.train, trainer.hang_watch
    save_every, validate_every = train.checkpointing.every_steps, train.validation.every_steps
    _configure_model(trainer)
    set_weight_decay(trainer.optimizer, train.optimizer.weight_decay)
    spikes = SpikeDetector(train.guards)
    batches: list[Iterator[Batch]] = [
        batch_stream(trainer.mixture.samples, train, trainer.device, first_step=progress.step, steps=plan.steps)
        for _ in trainer.model
    ]
    watch = Stopwatch()

    while progress.step < plan.steps:
        # Learning rate
        step = progress.step
        hang_watch.begin_step()
        rate = learning_rate_of_step(plan.settings, step, train)
        set_learning_rate(trainer.optimizer, rate)

        # Forward, backward, update
        for chunk in trainer.model:
            chunk.zero_grad_buffer()
        trainer.optimizer.zero_grad()
        records = run_micro_batches(trainer.model, batches, train, forward_only=False)
        loss, stop = reduce_over_world(records, trainer.stop_requested(), trainer.device)
        if not math.isfinite(loss):
            raise TrainingHalted(_name_the_batch(trainer, step, f"loss {loss}", records))
        _, grad_norm, _ = trainer.optimizer.step()
        grad_norm = float(grad_norm) if grad_norm is not None else 0.0
        if not math.isfinite(grad_norm):
            raise TrainingHalted(_name_the_batch(trainer, step, f"gradient norm {grad_norm}", records))

        # Records
        progress.step = step + 1
        progress.last_loss = loss
        progress.first_loss = loss if progress.first_loss is None else progress.first_loss
        seconds = watch.lap()
        progress.wall_seconds += seconds
        if (deviations := spikes.observe(loss)) is not None:
            progress.spikes.append(progress.step)
            trainer.reporter.say(
                f"loss spike at step {progress.step}: {loss:.4f}, {deviations:.1f} deviations above the recent mean"
            )
        trainer.reporter.step(_record(trainer, step, loss, rate, grad_norm, seconds))
        hang_watch.end_step()

        # Validation, checkpoint, stop
        at_end = progress.step == plan.steps
        stop = stop or progress.step == plan.stop_after_step
        if validate_every and progress.step % validate_every == 0 and not at_end:
            trainer.validate(progress)
        if at_end or stop or progress.step % save_every == 0 or progress.step in plan.kept_steps:
            trainer.save(progress)
        trainer.poll_save()
        if stop and not at_end:
            return False
        watch.restart()
    _check_last_rate(trainer)
    return True


class SpikeDetector:
    """Flags a loss that lies many standard deviations above the recent ones."""

    def __init__(self, guards: Guards) -> None:
        self.limit = guards.spike_deviations
        self.recent: deque[float] = deque(maxlen=guards.spike_window)

    def observe(self, loss: float) -> float | None:
        """Take in a loss. Returns how many deviations above the mean it is if that is a spike, else None.

        A spike does not enter the window, so that it does not hide the next one.
        """
        deviations = self._deviations(loss)
        if deviations is not None and deviations > self.limit:
            return deviations
        self.recent.append(loss)
        return None

    def _deviations(self, loss: float) -> float | None:
        if len(self.recent) < MINIMUM_HISTORY:
            return None
        mean = math.fsum(self.recent) / len(self.recent)
        variance = math.fsum((x - mean) ** 2 for x in self.recent) / (len(self.recent) - 1)
        return (loss - mean) / math.sqrt(variance) if variance > 0 else None


def _configure_model(trainer: Trainer) -> None:
    """Tell Megatron's schedules how gradients are completed, and on CUDA when they are not synchronized."""
    config = trainer.model[0].config
    config.finalize_model_grads_func = finalize_model_grads
    if trainer.device.type == "cuda":
        no_sync: list[Any] = [chunk.no_sync for chunk in trainer.model]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]


def _record(trainer: Trainer, step: int, loss: float, rate: float, grad_norm: float, seconds: float) -> StepRecord:
    plan, train = trainer.plan, trainer.plan.train
    batch, tokens_per_second = train.global_batch_size, train.tokens_per_step / seconds
    flops_per_token = plan.recipe.model.architecture.flops_per_token(train.sequence_length)
    stage_tokens = plan.tokens_after(step + 1)
    return {
        "step": step + 1,
        "stage_tokens": stage_tokens,
        "tokens": plan.lineage_tokens + stage_tokens,
        "loss": loss,
        "lr": rate,
        "grad_norm": grad_norm,
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * flops_per_token / trainer.peak_flops if trainer.peak_flops else None,
        "source_tokens": trainer.mixture.tokens_by_source(step * batch, (step + 1) * batch, train.sequence_length),
        "seconds": seconds,
        "time": time.time(),
    }


def _name_the_batch(trainer: Trainer, step: int, problem: str, records: list[LossRecord]) -> str:
    """Say which samples a bad step was made of. Where the losses of some micro-batches are bad, name those alone."""
    train, mixture = trainer.plan.train, trainer.mixture
    sampler = StepSampler(train, first_step=step, steps=step + 1)
    bad = [
        ids
        for ids, record in zip(sampler.of_step(step), records, strict=False)
        if not math.isfinite(float(record["loss"]))
    ]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, bad)
    samples = sorted({i for part in gathered for ids in part for i in ids})
    if not samples:
        samples = list(range(step * train.global_batch_size, (step + 1) * train.global_batch_size))
    sources = {mixture.source_names[mixture.source_of_sample[i]] for i in samples}
    return (
        f"{trainer.plan.name}: {problem} at step {step + 1}, in samples {as_ranges(samples)} "
        f"(sources {', '.join(sorted(sources))}); nothing was saved of this step. "
        "Look at those samples (`octo data show`), lower train.learning_rate, or resume from an earlier checkpoint"
    )


def _check_last_rate(trainer: Trainer) -> None:
    """Refuse an end at a learning rate other than the schedule's, as the optimizer itself has it."""
    plan, schedule = trainer.plan, trainer.plan.settings.learning_rate
    peak = plan.settings.peak_learning_rate(plan.train)
    # worked out here, not taken from the schedule that wrote it
    expected = peak if schedule.shape == "constant" or plan.steps == 1 else peak * schedule.floor
    present = learning_rates(trainer.optimizer)
    if any(abs(rate - expected) > 1e-9 * expected for rate in present):
        raise RecipeError(f"{plan.name} ended at learning rates {present}, and its schedule says {expected}")
