"""The plan of a stage, worked out before anything is built: every refusal that needs more than the recipe's text."""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from megatron_octo.bridge.base import check_base
from megatron_octo.data.mixture import (
    MixtureSource,
    TokenIds,
    count_samples,
    data_fingerprint,
    fingerprint_changes,
    read_mixture_sources,
    read_token_ids,
)
from megatron_octo.errors import CheckpointError, ModelError, RecipeError, RuntimeSetupError
from megatron_octo.recipe import Parallel, Recipe
from megatron_octo.recipe.check import batch_problems
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.recipe.stage import Stage
from megatron_octo.recipe.train import TrainSection
from megatron_octo.runtime.groups import data_parallel_size
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.lineage import changed_settings, read_lineage
from megatron_octo.train.start import Branch, Checkpoint, FromBase, Resume, Start, find_start, parent_manifest_sha256

RATE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class StageOptions:
    """Choices of one run that are not the recipe's."""

    accept_changes: bool = False
    """Resume although the data order or the settings changed."""
    stop_after_step: int | None = None
    """Save and stop once this step is done; the next run resumes from there."""


@dataclass(frozen=True)
class StagePlan:
    """Everything that is decided about a stage before it is built. The same on every rank."""

    recipe: Recipe
    run: RunFolder
    name: str
    training: tuple[MixtureSource, ...]
    validation: tuple[MixtureSource, ...]
    tokens: TokenIds
    fingerprint: dict[str, Any]
    """Fingerprint of the order of the samples; see `data_fingerprint`."""
    start: Start
    accepted_changes: tuple[str, ...]
    """Changes since the stage began that `accept_changes` let pass."""
    stop_after_step: int | None

    @property
    def settings(self) -> Stage:
        """The stage's section of the recipe."""
        return self.recipe.stages[self.name]

    @property
    def train(self) -> TrainSection:
        """The recipe's `train` section."""
        return self.recipe.train

    @cached_property
    def layout(self) -> Parallel:
        """Parallel layout of the stage."""
        return self.recipe.layout(self.name)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.recipe.steps(self.name)

    @property
    def first_step(self) -> int:
        """Steps that are trained already."""
        return self.start.checkpoint.manifest.step if isinstance(self.start, Resume) else 0

    @cached_property
    def kept_steps(self) -> frozenset[int]:
        """Steps whose checkpoints are never removed: the end, and where children start."""
        return frozenset(self.recipe.branch_steps(self.name))

    @cached_property
    def lineage_tokens(self) -> int:
        """Tokens that the ancestors trained on."""
        return self.recipe.lineage_tokens(self.name)

    @property
    def needs_import(self) -> bool:
        """Whether the base has to be imported into the run folder first."""
        return isinstance(self.start, FromBase) and self.start.checkpoint is None

    def tokens_after(self, step: int) -> int:
        """Tokens of this stage after a number of steps."""
        return step * self.train.tokens_per_step


def plan_stage(recipe: Recipe, run: RunFolder, stage: str, options: StageOptions, world_size: int) -> StagePlan:
    """Work out a stage's plan from the recipe and the run folder. Nothing is started or written.

    Args:
        world_size: ranks that will train the stage.

    Raises:
        OctoError: a layout, data or a checkpoint that the stage cannot be trained with; the message gives the way out.
    """
    layout = recipe.layout(stage)
    key = "parallel" if recipe.stages[stage].parallel is None else f"stages.{stage}.parallel"
    if problems := list(batch_problems(recipe, key, layout, data_parallel_size(layout, world_size))):
        raise RecipeError("; ".join(str(problem) for problem in problems))
    _check_installation(recipe, layout)
    sources = read_mixture_sources(recipe, run, stage)
    fingerprint = data_fingerprint(
        sources.training,
        samples=count_samples(recipe, stage),
        sequence_length=recipe.train.sequence_length,
        global_batch_size=recipe.train.global_batch_size,
        seed=recipe.seed,
    )
    start = find_start(recipe, run, stage)
    accepted: list[str] = []
    match start:
        case Resume(checkpoint):
            accepted = _check_resume(recipe, run, stage, checkpoint, fingerprint, options.accept_changes)
        case Branch(checkpoint):
            _check_first_rate(recipe, stage, checkpoint)
        case FromBase(None):
            check_base(recipe, run)
    return StagePlan(
        recipe=recipe,
        run=run,
        name=stage,
        training=sources.training,
        validation=sources.validation,
        tokens=read_token_ids(recipe, run),
        fingerprint=fingerprint,
        start=start,
        accepted_changes=tuple(accepted),
        stop_after_step=options.stop_after_step,
    )


def _check_installation(recipe: Recipe, layout: Parallel) -> None:
    """Refuse settings that this machine or its packages cannot serve."""
    has_cuda = torch.cuda.is_available()
    if recipe.train.precision == "fp8" and not has_cuda:
        raise ModelError("train.precision = fp8: FP8 needs a Hopper GPU or newer; set train.precision=bf16")
    project = recipe.train.logging.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise RuntimeSetupError(
            f"train.logging.wandb_project = {project!r}, but wandb is not installed; "
            "pip install wandb, or set the key to null"
        )
    if layout.context > 1 and (not has_cuda or importlib.util.find_spec("transformer_engine") is None):
        raise RuntimeSetupError(
            f"parallel.context = {layout.context}: context parallelism needs Transformer Engine on a GPU; set it to 1"
        )


def _check_resume(
    recipe: Recipe,
    run: RunFolder,
    stage: str,
    checkpoint: Checkpoint,
    fingerprint: dict[str, Any],
    accept_changes: bool,
) -> list[str]:
    """Refuse to resume from a checkpoint that another recipe, order of data, layout or parent made.

    Returns:
        The changes since the stage began, where `accept_changes` let them pass.
    """
    _check_layout(recipe, stage, checkpoint)
    lineage = read_lineage(run, stage)
    before = lineage.parent_manifest_sha256
    if before is not None and before != parent_manifest_sha256(recipe, run, stage):
        raise CheckpointError(
            f"{run.stage(stage)} branched off a checkpoint of {recipe.stages[stage].parent.stage!r} that is not there "
            "any more, or not at the mark the recipe names; undo the change, or remove that folder to train it again"
        )
    accepted = []
    for changes, problem in (
        (
            fingerprint_changes(checkpoint.manifest.data_fingerprint, fingerprint),
            "the data is not what this stage began with, and a resume would reorder it",
        ),
        (changed_settings(lineage, recipe, stage), "the stage began with other settings"),
    ):
        if changes and not accept_changes:
            raise CheckpointError(
                f"{checkpoint.folder}: {problem}:\n  "
                + "\n  ".join(changes)
                + "\nundo the change, start the stage anew in another run folder, or pass --accept-changes"
            )
        accepted += changes
    return accepted


def _check_layout(recipe: Recipe, stage: str, checkpoint: Checkpoint) -> None:
    before, now = checkpoint.manifest.layout, recipe.layout(stage).model_dump(mode="json")
    fixed = ("tensor", "pipeline", "virtual_pipeline")
    changed = [f"{key} {before[key]} -> {now[key]}" for key in fixed if before[key] != now[key]]
    if changed and checkpoint.manifest.resharding != "full":
        raise CheckpointError(
            f"{checkpoint.folder}: saved with train.checkpointing.resharding=data_parallel, so {', '.join(changed)} "
            "is not possible; resume under the old layout, or from a checkpoint that a branch starts from"
        )


def _check_first_rate(recipe: Recipe, stage: str, checkpoint: Checkpoint) -> None:
    """A branch begins at the learning rate that its parent really ended with."""
    if recipe.stages[stage].learning_rate.warmup:
        return
    first, last = learning_rate_of_step(recipe.stages[stage], 0, recipe.train), checkpoint.manifest.learning_rate
    if abs(first - last) > RATE_TOLERANCE * last:
        raise CheckpointError(
            f"{stage} would begin at learning rate {first:.6g}, and its parent's checkpoint {checkpoint.folder} ended "
            f"at {last:.6g}; set train.learning_rate back, or give the stage a warmup"
        )
