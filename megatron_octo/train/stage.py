"""Train one stage of a recipe, on this rank: set up, find the start, run the loop, write the result."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from megatron_octo.bridge.base import import_base
from megatron_octo.bridge.load import load_weights
from megatron_octo.data.blend import build_blend, build_validation
from megatron_octo.model.build import build_model
from megatron_octo.model.initialize import initialize_random
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.runtime.checkpoints import MANIFEST, CheckpointManifest, folder_name
from megatron_octo.runtime.device import setup_device
from megatron_octo.runtime.files import sha256_of, write_json_atomically
from megatron_octo.runtime.groups import (
    any_rank,
    data_parallel_size,
    from_first_rank,
    start_process_groups,
    stop_process_groups,
    together,
)
from megatron_octo.runtime.hang_watch import HangWatch
from megatron_octo.runtime.rank import Rank
from megatron_octo.runtime.records import as_ranges, read_lines
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.runtime.signals import StopRequest, listen_for_stop
from megatron_octo.runtime.stage_lock import hold_stage, write_claim
from megatron_octo.train.agreement import check_agreement
from megatron_octo.train.corpus import epochs, stage_sources, token_ids
from megatron_octo.train.display import Display
from megatron_octo.train.done import decisive_settings, read_lineage
from megatron_octo.train.integrity import checkpoint_files, data_files, verify_files
from megatron_octo.train.loop import Hooks, Progress, Setup, StepRecord, train_steps
from megatron_octo.train.metrics import MetricsWriter
from megatron_octo.train.optimizer import build_optimizer, wrap_data_parallel
from megatron_octo.train.order import data_order
from megatron_octo.train.origin import Origin, find_origin, parent_digest
from megatron_octo.train.saver import CheckpointSaver
from megatron_octo.train.state import load_state
from megatron_octo.train.throughput import peak_flops
from megatron_octo.train.validate import validation_losses


@dataclass(frozen=True)
class StageOptions:
    """Choices of one run that are not the recipe's."""

    accept_changes: bool = False
    stop_after_step: int | None = None
    """Save and stop once this step is done; the next run goes on from there."""


def train_stage(recipe: Recipe, run: RunFolder, stage: str, options: StageOptions) -> bool:
    """Train a stage to its end on this rank (every rank calls it). Returns whether the end was reached."""
    stop = listen_for_stop()
    rank = Rank.from_environment()
    device = setup_device(rank.local_rank, announce=rank.is_first)
    layout = recipe.layout(stage)
    data_parallel_size(layout, rank.world_size)
    hang = HangWatch(recipe.train.guards, rank.rank)
    hang.other_work()
    try:
        start_process_groups(rank, layout, device, recipe.seed)
        return _train(recipe, run, stage, options, rank, device, stop, hang)
    finally:
        stop_process_groups()
        hang.stop()


def _train(
    recipe: Recipe,
    run: RunFolder,
    stage: str,
    options: StageOptions,
    rank: Rank,
    device: torch.device,
    stop: StopRequest,
    hang: HangWatch,
) -> bool:
    layout, train = recipe.layout(stage), recipe.train
    steps, cache = recipe.steps(stage), run.stage(stage) / "cache"
    display = None

    # 1. Data: its order is fixed by the fingerprint
    sources, tokens = stage_sources(recipe, run, stage, "train"), token_ids(recipe, run)
    order = data_order(recipe, sources, stage)

    # 2. Where the weights come from; refused before anything is built
    origin = from_first_rank(lambda: find_origin(recipe, run, stage))
    if origin.kind == "base" and origin.folder is None:
        together(lambda: import_base(recipe, run, layout) if rank.is_first else None, hang.other_work)
        origin = from_first_rank(lambda: find_origin(recipe, run, stage))
    accepted = check_agreement(recipe, run, stage, origin, order, accept_changes=options.accept_changes)
    hashed = _verify_inputs(recipe, run, stage, origin, rank, hang)

    common: dict[str, Any] = {
        "sequence_length": train.sequence_length,
        "seed": recipe.seed,
        "tokens": tokens,
        "cache": cache,
    }
    blend = build_blend(sources, samples=order["samples"], **common)
    held_out = build_validation(
        stage_sources(recipe, run, stage, "validation"),
        samples=train.validation.batches * train.global_batch_size,
        **common,
    )

    # 3. Model and optimizer
    chunks = build_model(recipe.model.architecture, train, layout, device)
    if origin.kind == "random":
        initialize_random(chunks, recipe.seed)
    elif origin.kind == "base" and origin.folder is not None:
        # before the optimizer is built, which makes its fp32 copy of the weights then
        load_weights(origin.folder, chunks)
    model = wrap_data_parallel(chunks, train)
    optimizer = build_optimizer(model, train)
    if origin.kind in ("resume", "branch") and origin.folder is not None and origin.manifest is not None:
        load_state(origin.folder, model, optimizer, origin.manifest.resharding)
    progress = _progress_of(origin)

    # 4. What happens around the steps
    setup = Setup(
        recipe=recipe,
        stage_name=stage,
        model=model,
        optimizer=optimizer,
        blend=blend,
        device=device,
        lineage_tokens=recipe.lineage_tokens(stage),
        peak_flops=peak_flops(device),
        checkpoint_steps=frozenset(recipe.branch_steps(stage)),
        stop_after_step=options.stop_after_step,
    )
    from_first_rank(lambda: hold_stage(run, stage))
    keep = recipe.branch_steps(stage)
    saver = CheckpointSaver(run.checkpoints(stage), rank, train.checkpointing, keep, hang.other_work)
    display = Display(stage, steps, progress.step) if rank.is_first else None
    writer = None
    if rank.is_first:
        _begin(recipe, run, stage, origin, order, accepted)
        writer = MetricsWriter(
            run.metrics(stage),
            run.validation(stage),
            train.logging,
            name=f"{recipe.name}/{stage}",
            resume_step=progress.step,
        )
        assert display is not None
        _announce(recipe, run, stage, display, origin, accepted)
        display.say(hashed)
        _announce_losses(display, writer)

    def on_step(record: StepRecord) -> None:
        if writer is not None and display is not None:
            writer.step(record)
            display.step(record)

    def on_spike(step: int, loss: float, deviations: float) -> None:
        if display is not None:
            display.say(f"loss spike at step {step}: {loss:.4f}, {deviations:.1f} deviations above the recent mean")

    def on_checkpoint(now: Progress) -> None:
        if writer is not None:
            writer.sync()
        saver.save(_manifest(recipe, stage, now, order), model, optimizer)

    def on_validation(now: Progress) -> dict[str, float]:
        losses = validation_losses(model, held_out, train, device)
        if writer is not None:
            for source, loss in losses.items():
                stage_tokens = now.step * train.tokens_per_step
                writer.validated(
                    {
                        "step": now.step,
                        "stage_tokens": stage_tokens,
                        "tokens": setup.lineage_tokens + stage_tokens,
                        "source": source,
                        "loss": loss,
                    }
                )
        return losses

    hooks = Hooks(
        on_step=on_step,
        on_checkpoint=on_checkpoint,
        on_validation=on_validation,
        on_spike=on_spike,
        stop_requested=stop.requested,
        poll=saver.poll,
        hang=hang,
    )

    # 5. Train
    try:
        if any_rank(stop.requested()):
            if display is not None:
                display.say(f"stopped before step {progress.step + 1} of {steps}; run it again to go on")
            return False
        before = None
        if progress.step == 0 and origin.kind in ("branch", "base"):
            before = on_validation(progress)  # the parent's loss on this stage's own mixture
        finished = train_steps(setup, progress, hooks)
        saver.close()
        if finished:
            after = on_validation(progress)
            if rank.is_first:
                _write_result(recipe, run, stage, progress, before, after)
            torch.distributed.barrier()  # no rank goes on to a child before the result is there
        elif display is not None:
            display.say(f"stopped at step {progress.step} of {steps}, saved; run it again to go on")
        return finished
    finally:
        if display is not None:
            display.close()
        if writer is not None:
            writer.close()
        if rank.is_first:
            run.running(stage).unlink(missing_ok=True)


def _verify_inputs(recipe: Recipe, run: RunFolder, stage: str, origin: Origin, rank: Rank, hang: HangWatch) -> str:
    """Hash what the stage starts from. Returns a line that says how much, and how long it took."""
    data = from_first_rank(lambda: data_files(recipe, run, stage))
    size, seconds = verify_files(
        data,
        rank,
        f"restore them from a copy, or remove their folders and run `octo data prepare {recipe.name}`",
        hang.other_work,
    )
    if origin.folder is not None and origin.manifest is not None:
        folder, manifest = origin.folder, origin.manifest
        weights = from_first_rank(lambda: checkpoint_files(folder, manifest))
        more = verify_files(
            weights,
            rank,
            "restore the checkpoint from a copy, or remove its folder to go on from the one before",
            hang.other_work,
        )
        size, seconds = size + more[0], seconds + more[1]
    return f"{size / 1e9:.3g} GB of data and weights hashed in {seconds:.1f} s: as recorded"


def _progress_of(origin: Origin) -> Progress:
    if origin.kind != "resume" or origin.manifest is None:
        return Progress()
    kept = origin.manifest
    return Progress(
        step=kept.step,
        first_loss=kept.first_loss,
        last_loss=kept.last_loss,
        wall_seconds=kept.wall_seconds,
        spikes=list(kept.spikes),
    )


def _manifest(recipe: Recipe, stage: str, now: Progress, order: dict[str, Any]) -> CheckpointManifest:
    keeps_branches = now.step in recipe.branch_steps(stage)
    stage_tokens = now.step * recipe.train.tokens_per_step
    return CheckpointManifest(
        recipe=recipe.name,
        stage=stage,
        step=now.step,
        stage_tokens=stage_tokens,
        lineage_tokens=recipe.lineage_tokens(stage) + stage_tokens,
        learning_rate=learning_rate_of_step(recipe.stages[stage], now.step - 1, recipe.train),
        layout=recipe.layout(stage).model_dump(mode="json"),
        resharding="full" if keeps_branches else recipe.train.checkpointing.resharding,
        architecture=recipe.model.architecture.model_dump(mode="json"),
        data_fingerprint=order,
        spikes=now.spikes,
        first_loss=now.first_loss,
        last_loss=now.last_loss,
        wall_seconds=now.wall_seconds,
        versions={package: metadata.version(package) for package in ("torch", "megatron-core", "megatron-octo")},
    )


def _begin(
    recipe: Recipe, run: RunFolder, stage: str, origin: Origin, order: dict[str, Any], accepted: list[str]
) -> None:
    """Record the lineage and that this stage is running."""
    write_claim(run.running(stage))
    if origin.kind == "resume":
        if accepted:  # from here on the stage is the recipe's as it is now; what it was is not forgotten
            lineage = read_lineage(run, stage)
            changes = [*lineage["changes"], {"after_step": origin.step, "changed": accepted}]
            now = {"settings": decisive_settings(recipe, stage), "data": order, "changes": changes}
            write_json_atomically(run.lineage(stage), lineage | now)
        return
    write_json_atomically(
        run.lineage(stage),
        {
            "stage": stage,
            "parent": recipe.stages[stage].parent.stage,
            "parent_step": recipe.parent_step(stage),
            "parent_tokens": recipe.lineage_tokens(stage),
            "parent_checkpoint": origin.folder.name if origin.folder is not None else None,
            "parent_manifest_sha256": parent_digest(recipe, run, stage),
            "base": recipe.model.base,
            "initialize": recipe.model.initialize,
            "base_manifest_sha256": sha256_of(run.base / MANIFEST) if origin.kind == "base" else None,
            "seed": recipe.seed,
            "settings": decisive_settings(recipe, stage),
            "data": order,
            "changes": [],
            "began": datetime.now(UTC).isoformat(),
        },
    )


def _announce(
    recipe: Recipe, run: RunFolder, stage: str, display: Display, origin: Origin, accepted: list[str]
) -> None:
    layout, steps = recipe.layout(stage), recipe.steps(stage)
    begins = {
        "resume": f"resumes after step {origin.step}",
        "branch": f"branches off {recipe.stages[stage].parent.stage} at step {recipe.parent_step(stage)}",
        "base": f"starts from {recipe.model.base}",
        "random": "starts from random weights",
    }[origin.kind]
    real = steps * recipe.train.tokens_per_step
    display.say(
        f"{begins}; {steps} steps x {recipe.train.tokens_per_step} tokens = {real} "
        f"(budget {recipe.stages[stage].tokens}); tensor {layout.tensor}, pipeline {layout.pipeline}"
    )
    repeated = {name: times for name, times in epochs(recipe, run, stage).items() if times > 1.0}
    if repeated:
        listed = ", ".join(f"{name} {times:.1f}x" for name, times in repeated.items())
        display.say(f"sources seen more than once: {listed}")
    for change in accepted:
        display.say(f"accepted a change: {change}")


def _announce_losses(display: Display, writer: MetricsWriter) -> None:
    if writer.torn:
        display.say(f"metrics.jsonl and validation.jsonl: {writer.torn} damaged lines dropped, the others kept")
    if writer.lost:
        display.say(
            f"metrics.jsonl has no record of steps {as_ranges(writer.lost)}, which were trained: the curves have a gap"
        )


def _write_result(
    recipe: Recipe,
    run: RunFolder,
    stage: str,
    progress: Progress,
    before: dict[str, float] | None,
    after: dict[str, float],
) -> None:
    """The stage's result, written last: its presence means done."""
    train, shape, steps = recipe.train, recipe.stages[stage], recipe.steps(stage)
    if before is None:
        before = _losses_before(run, stage)
    write_json_atomically(
        run.result(stage),
        {
            "tokens": steps * train.tokens_per_step,
            "steps": steps,
            "first_lr": learning_rate_of_step(shape, 0, train),
            "last_lr": learning_rate_of_step(shape, steps - 1, train),
            "first_loss": progress.first_loss,
            "last_loss": progress.last_loss,
            "validation_loss": after,
            "parent": shape.parent.stage,
            "parent_validation_loss": before,
            "wall_seconds": round(progress.wall_seconds, 3),
            "tokens_per_second": steps * train.tokens_per_step / max(progress.wall_seconds, 1e-9),
            "spikes": progress.spikes,
            "checkpoint": folder_name(steps),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def _losses_before(run: RunFolder, stage: str) -> dict[str, float] | None:
    """The losses noted before the first step, where this run resumed after it."""
    return {
        record["source"]: record["loss"]
        for record in read_lines(run.validation(stage))
        if record.get("step") == 0 and {"source", "loss"} <= record.keys()
    } or None
