"""Train one stage of a recipe, on this rank: plan, build, train, result."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from megatron_octo.bridge.base import import_base
from megatron_octo.data.datasets import build_mixture, build_validation
from megatron_octo.data.mixture import count_samples
from megatron_octo.model.build import build_model
from megatron_octo.model.initialize import initialize_random
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.runtime.checkpoint_loading import load_weights
from megatron_octo.runtime.checkpoints import CheckpointManifest, folder_name
from megatron_octo.runtime.device import setup_device
from megatron_octo.runtime.files import write_json_atomically
from megatron_octo.runtime.groups import (
    any_rank,
    from_first_rank,
    join_world,
    make_model_groups,
    run_on_all_ranks,
    stop_model_groups,
    stop_process_groups,
)
from megatron_octo.runtime.hang_watch import HangWatch
from megatron_octo.runtime.rank import Rank
from megatron_octo.runtime.records import read_records
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.runtime.signals import StopRequest, listen_for_stop
from megatron_octo.runtime.stage_lock import drop_claim, hold_stage, write_claim
from megatron_octo.train.forward import validation_losses
from megatron_octo.train.integrity import verify_inputs
from megatron_octo.train.lineage import record_accepted_changes, write_lineage
from megatron_octo.train.loop import Progress, Trainer, train_steps
from megatron_octo.train.optimizer import build_optimizer, wrap_data_parallel
from megatron_octo.train.plan import StageOptions, StagePlan, plan_stage
from megatron_octo.train.reporter import open_reporter
from megatron_octo.train.saver import CheckpointSaver
from megatron_octo.train.start import Branch, FromBase, RandomWeights, Resume
from megatron_octo.train.state import load_state
from megatron_octo.train.throughput import peak_flops


@dataclass(frozen=True)
class RankContext:
    """This rank's device, its stop signals and its hang watch."""

    rank: Rank
    device: torch.device
    stop: StopRequest
    hang_watch: HangWatch


@contextmanager
def joined_world(recipe: Recipe) -> Iterator[RankContext]:
    """Join the world of ranks, and leave it at the end. Every rank enters it.

    Raises:
        RuntimeSetupError: the ranks cannot meet.
    """
    stop = listen_for_stop()
    rank = Rank.from_environment()
    device = setup_device(rank.local_rank, announce=rank.is_first)
    hang_watch = HangWatch(recipe.train.guards, rank.rank)
    hang_watch.other_work()
    try:
        join_world(rank, device)
        hang_watch.other_work()
        yield RankContext(rank, device, stop, hang_watch)
    finally:
        stop_process_groups()
        hang_watch.stop()


def train_stage(context: RankContext, recipe: Recipe, run: RunFolder, stage: str, options: StageOptions) -> bool:
    """Train a stage to its end. Every rank of the world calls it. Returns whether the end was reached.

    Raises:
        OctoError: on every rank, whichever found the problem.
    """
    make_model_groups(recipe.layout(stage), recipe.seed)
    on_wait = context.hang_watch.other_work
    try:
        # 1. Plan: on the first rank, under the stage's lock
        plan = _make_plan(context, recipe, run, stage, options)
        verified = verify_inputs(plan, context.rank, on_wait)

        # 2. Build
        checkpoints = run.checkpoints(stage)
        saver = CheckpointSaver(checkpoints, context.rank, plan.train.checkpointing, plan.kept_steps, on_wait)
        trainer, progress = _build(plan, context, saver, verified)
        try:
            # 3. Train
            if any_rank(context.stop.requested()):
                trainer.reporter.say(
                    f"stopped before step {progress.step + 1} of {plan.steps}; run the same command again to resume"
                )
                return False
            parent_losses = None
            if progress.step == 0 and isinstance(plan.start, Branch | FromBase):
                parent_losses = trainer.validate(progress)  # on this stage's own mixture
            is_complete = train_steps(trainer, progress)
            saver.close()
            if not is_complete:
                trainer.reporter.say(
                    f"stopped at step {progress.step} of {plan.steps}, saved; run the same command again to resume"
                )
                return False

            # 4. Result
            losses = trainer.validate(progress)
            if context.rank.is_first:
                _write_result(plan, progress, parent_losses, losses)
            torch.distributed.barrier()  # no rank goes on to a child before the result is there
            return True
        finally:
            trainer.reporter.close()
    finally:
        stop_model_groups()
        if context.rank.is_first:
            drop_claim(run, stage)


def _make_plan(context: RankContext, recipe: Recipe, run: RunFolder, stage: str, options: StageOptions) -> StagePlan:
    """The same plan on every rank; the base model is imported where the plan asks for it."""

    def lock_and_plan() -> StagePlan:
        hold_stage(run, stage)
        write_claim(run.running(stage))
        return plan_stage(recipe, run, stage, options, context.rank.world_size)

    on_wait = context.hang_watch.other_work
    plan = from_first_rank(lock_and_plan, on_wait)
    if plan.needs_import:
        run_on_all_ranks(lambda: import_base(recipe, run, plan.layout) if context.rank.is_first else None, on_wait)
        plan = from_first_rank(lock_and_plan, on_wait)
    on_wait()
    return plan


def _build(plan: StagePlan, context: RankContext, saver: CheckpointSaver, verified: str) -> tuple[Trainer, Progress]:
    """Data, model, optimizer and reporter, filled from where the stage starts.

    Args:
        verified: a line for the log about what was hashed.
    """
    recipe, run, train, device = plan.recipe, plan.run, plan.train, context.device

    # Data
    common: dict[str, Any] = {
        "sequence_length": train.sequence_length,
        "seed": recipe.seed,
        "tokens": plan.tokens,
        "cache": run.index_cache(plan.name),
    }
    mixture = build_mixture(plan.training, samples=count_samples(recipe, plan.name), **common)
    held_out_samples = train.validation.batches * train.global_batch_size
    validation = build_validation(plan.validation, samples=held_out_samples, **common)

    # Model and optimizer. Weights without an optimizer are loaded before it is built, since it copies them to fp32 then
    chunks = build_model(recipe.model.architecture, train, plan.layout, device)
    match plan.start:
        case RandomWeights():
            initialize_random(chunks, recipe.seed)
        case FromBase(checkpoint):
            assert checkpoint is not None  # imported by now
            load_weights(checkpoint.folder, chunks)
    model = wrap_data_parallel(chunks, train)
    optimizer = build_optimizer(model, train)
    if isinstance(plan.start, Resume | Branch):
        checkpoint = plan.start.checkpoint
        load_state(checkpoint.folder, model, optimizer, checkpoint.manifest.resharding)

    # Records
    peak = peak_flops(device)
    if context.rank.is_first:
        _record_start(plan)
    reporter = open_reporter(plan, is_first=context.rank.is_first, note=verified)

    def validate(progress: Progress) -> dict[str, float]:
        losses = validation_losses(model, validation, train, device)
        reporter.validation(progress.step, losses)
        return losses

    def save(progress: Progress) -> None:
        reporter.flush()
        saver.save(_manifest(plan, progress), model, optimizer)

    trainer = Trainer(
        plan=plan,
        model=model,
        optimizer=optimizer,
        mixture=mixture,
        device=device,
        peak_flops=peak,
        reporter=reporter,
        hang_watch=context.hang_watch,
        stop_requested=context.stop.requested,
        validate=validate,
        save=save,
        poll_save=saver.poll,
    )
    return trainer, _progress_of(plan)


def _record_start(plan: StagePlan) -> None:
    """Write the lineage of a new stage, or the changes that a resume accepts."""
    if not isinstance(plan.start, Resume):
        write_lineage(plan.recipe, plan.run, plan.name, plan.start, plan.fingerprint)
    elif plan.accepted_changes:
        record_accepted_changes(
            plan.recipe, plan.run, plan.name, plan.first_step, plan.accepted_changes, plan.fingerprint
        )


def _progress_of(plan: StagePlan) -> Progress:
    if not isinstance(plan.start, Resume):
        return Progress()
    manifest = plan.start.checkpoint.manifest
    return Progress(
        step=manifest.step,
        first_loss=manifest.first_loss,
        last_loss=manifest.last_loss,
        wall_seconds=manifest.wall_seconds,
        spikes=list(manifest.spikes),
    )


def _manifest(plan: StagePlan, progress: Progress) -> CheckpointManifest:
    recipe, stage_tokens = plan.recipe, plan.tokens_after(progress.step)
    return CheckpointManifest(
        recipe=recipe.name,
        stage=plan.name,
        step=progress.step,
        stage_tokens=stage_tokens,
        lineage_tokens=plan.lineage_tokens + stage_tokens,
        learning_rate=learning_rate_of_step(plan.settings, progress.step - 1, plan.train),
        layout=plan.layout.model_dump(mode="json"),
        # a branch may start from a kept step at another layout
        resharding="full" if progress.step in plan.kept_steps else plan.train.checkpointing.resharding,
        architecture=recipe.model.architecture.model_dump(mode="json"),
        data_fingerprint=plan.fingerprint,
        spikes=progress.spikes,
        first_loss=progress.first_loss,
        last_loss=progress.last_loss,
        wall_seconds=progress.wall_seconds,
        versions={package: metadata.version(package) for package in ("torch", "megatron-core", "megatron-octo")},
    )


def _write_result(
    plan: StagePlan, progress: Progress, parent_losses: dict[str, float] | None, losses: dict[str, float]
) -> None:
    """Write the stage's result.json. It comes last: a stage that has one is complete."""
    tokens = plan.tokens_after(plan.steps)
    result = {
        "tokens": tokens,
        "steps": plan.steps,
        "first_lr": learning_rate_of_step(plan.settings, 0, plan.train),
        "last_lr": learning_rate_of_step(plan.settings, plan.steps - 1, plan.train),
        "first_loss": progress.first_loss,
        "last_loss": progress.last_loss,
        "validation_loss": losses,
        "parent": plan.settings.parent.stage,
        "parent_validation_loss": parent_losses if parent_losses is not None else _recorded_parent_losses(plan),
        "wall_seconds": round(progress.wall_seconds, 3),
        "tokens_per_second": tokens / max(progress.wall_seconds, 1e-9),
        "spikes": progress.spikes,
        "checkpoint": folder_name(plan.steps),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json_atomically(plan.run.result(plan.name), result)


def _recorded_parent_losses(plan: StagePlan) -> dict[str, float] | None:
    """The losses recorded before the first step, where this run resumed after it."""
    return {
        record["source"]: record["loss"]
        for record in read_records(plan.run.validation(plan.name))
        if record.get("step") == 0 and {"source", "loss"} <= record.keys()
    } or None
