"""Where a stage's weights come from: its own newest checkpoint, its parent's, the base model, or a random start."""

from dataclasses import dataclass
from pathlib import Path

from megatron_octo.bridge.base import is_imported
from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import validated
from megatron_octo.recipe import BASE, Architecture, Recipe
from megatron_octo.runtime.checkpoints import (
    MANIFEST,
    CheckpointManifest,
    check_sizes,
    complete_steps,
    folder_name,
    read_checkpoint_manifest,
)
from megatron_octo.runtime.files import sha256_of
from megatron_octo.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and its manifest."""

    folder: Path
    manifest: CheckpointManifest


@dataclass(frozen=True)
class Resume:
    """The stage resumes from its own newest checkpoint."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class Branch:
    """The stage begins with weights and optimizer of its parent's checkpoint."""

    checkpoint: Checkpoint


@dataclass(frozen=True)
class FromBase:
    """The stage begins with published weights and a new optimizer."""

    checkpoint: Checkpoint | None
    """None while the base is not imported into the run folder."""


@dataclass(frozen=True)
class RandomWeights:
    """The stage begins with random weights."""


Start = Resume | Branch | FromBase | RandomWeights


def find_start(recipe: Recipe, run: RunFolder, stage: str) -> Start:
    """Choose the newest complete checkpoint of the stage, else its parent's at the mark, else the base.

    Raises:
        CheckpointError: the parent has no checkpoint at the mark, a checkpoint belongs elsewhere or is of another
            architecture, one of its files has the wrong size, or the imported base is not the recipe's.
    """
    if steps := complete_steps(run.checkpoints(stage)):
        folder = run.checkpoints(stage) / folder_name(steps[-1])
        checkpoint = _open_checkpoint(recipe, stage, folder)
        if steps[-1] > recipe.steps(stage):
            raise CheckpointError(
                f"{folder}: beyond the {recipe.steps(stage)} steps of stages.{stage}.tokens; "
                "raise the budget or remove the stage's folder"
            )
        return Resume(checkpoint)
    parent = recipe.stages[stage].parent.stage
    if parent != BASE:
        return Branch(_open_checkpoint(recipe, parent, _parent_folder(recipe, run, stage)))
    if recipe.model.initialize == "random":
        return RandomWeights()
    if not is_imported(run):
        return FromBase(None)
    manifest = read_checkpoint_manifest(run.base)
    _check_base(recipe, run.base, manifest)
    check_sizes(run.base, manifest)
    return FromBase(Checkpoint(run.base, manifest))


def checkpoint_of(start: Start) -> Checkpoint | None:
    """The checkpoint that weights are loaded from; None for random weights and for a base that is not imported."""
    return None if isinstance(start, RandomWeights) else start.checkpoint


def parent_manifest_sha256(recipe: Recipe, run: RunFolder, stage: str) -> str | None:
    """SHA-256 of the manifest of the checkpoint a stage branches off; None for the base, and where there is none."""
    parent = recipe.stages[stage].parent
    if parent.stage == BASE:
        return None
    path = run.checkpoints(parent.stage) / folder_name(recipe.parent_step(stage)) / MANIFEST
    return sha256_of(path) if path.is_file() else None


def _parent_folder(recipe: Recipe, run: RunFolder, stage: str) -> Path:
    """The parent's checkpoint at the mark where the stage starts.

    Raises:
        CheckpointError: there is none.
    """
    parent, step = recipe.stages[stage].parent, recipe.parent_step(stage)
    folder = run.checkpoints(parent.stage) / folder_name(step)
    if (folder / MANIFEST).is_file():
        return folder
    have = complete_steps(run.checkpoints(parent.stage))
    way_out = f"run `octo train {recipe.name} {parent.stage}` first"
    if have and have[-1] >= step:  # the parent has passed the mark and kept nothing there
        marks = ", ".join(f"{kept * recipe.train.tokens_per_step} tokens" for kept in have)
        way_out = f"set stages.{stage}.parent.at to a mark that was kept ({marks}), or leave it out"
    raise CheckpointError(
        f"{stage} starts from {parent.stage!r} at step {step}, and there is no complete checkpoint of that step "
        f"(there are: {', '.join(map(str, have)) or 'none'}); {way_out}"
    )


def _open_checkpoint(recipe: Recipe, stage: str, folder: Path) -> Checkpoint:
    """Read a stage's checkpoint, and refuse one of another recipe, stage or architecture, or with a file cut short."""
    manifest = read_checkpoint_manifest(folder)
    for what, found, expected in (("recipe", manifest.recipe, recipe.name), ("stage", manifest.stage, stage)):
        if found != expected:
            raise CheckpointError(
                f"{folder}: its manifest is of {what} {found!r}, and it stands in {what} {expected!r}; put the folder "
                "back where it was made"
            )
    _check_architecture(recipe, folder, manifest)
    check_sizes(folder, manifest)
    return Checkpoint(folder, manifest)


def _check_base(recipe: Recipe, folder: Path, manifest: CheckpointManifest) -> None:
    _check_architecture(recipe, folder, manifest)
    expected = {"name": recipe.model.base, "revision": recipe.model.base_revision}
    present = {key: manifest.origin.get(key) for key in expected}
    if present != expected:
        raise CheckpointError(
            f"{folder}: imported from {present['name']} (revision {present['revision']}), and the recipe says "
            f"{expected['name']} (revision {expected['revision']}); set model.base back, or give the recipe another "
            "name"
        )


def _check_architecture(recipe: Recipe, folder: Path, manifest: CheckpointManifest) -> None:
    present = validated(
        manifest.architecture, Architecture, f"{folder}: architecture", CheckpointError, "use another checkpoint"
    )
    if changed := recipe.model.architecture.differences(present):
        raise CheckpointError(
            f"{folder}: of another model than the recipe's: {'; '.join(changed)} there; "
            "restore model.architecture or use another run folder"
        )
