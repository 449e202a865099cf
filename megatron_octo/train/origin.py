"""Where a stage's weights come from: its own newest checkpoint, its parent's, or the base."""

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
class Origin:
    """What to load before the first step of this run of a stage."""

    kind: str
    """`resume`, `branch`, `base` (published weights) or `random`."""
    step: int
    """Steps of this stage already done."""
    folder: Path | None
    """None for random weights, and for a base that is not imported yet."""
    manifest: CheckpointManifest | None


def find_origin(recipe: Recipe, run: RunFolder, stage: str) -> Origin:
    """Choose the newest complete checkpoint of the stage, else its parent's at the mark, else the base.

    Raises:
        CheckpointError: the parent has no checkpoint at the mark, or one of the files is not of its size.
        CheckpointError: the base in the run folder is another than the recipe's.
    """
    parent = recipe.stages[stage].parent
    parent_folder = None
    if parent.stage != BASE:
        parent_folder = run.checkpoints(parent.stage) / folder_name(recipe.parent_step(stage))
    if steps := complete_steps(run.checkpoints(stage)):
        folder = run.checkpoints(stage) / folder_name(steps[-1])
        manifest = read_checkpoint_manifest(folder)
        _check_belongs(recipe, stage, folder, manifest)
        _check_architecture(recipe, folder, manifest)
        check_sizes(folder, manifest)
        if steps[-1] > recipe.steps(stage):
            raise CheckpointError(
                f"{folder}: beyond the {recipe.steps(stage)} steps of stages.{stage}.tokens; "
                "raise the budget or remove the stage's folder"
            )
        return Origin("resume", steps[-1], folder, manifest)
    if parent_folder is not None:
        if not (parent_folder / MANIFEST).is_file():
            have = complete_steps(run.checkpoints(parent.stage))
            way_out = f"run `octo train {recipe.name} {parent.stage}` first"
            if have and have[-1] >= recipe.parent_step(stage):  # it has gone past the mark and kept nothing there
                marks = ", ".join(f"{step * recipe.train.tokens_per_step} tokens" for step in have)
                way_out = f"set stages.{stage}.parent.at to a mark that was kept ({marks}), or leave it out"
            raise CheckpointError(
                f"{stage} starts from {parent.stage!r} at step {recipe.parent_step(stage)}, and there is no complete "
                f"checkpoint of that step (there are: {', '.join(map(str, have)) or 'none'}); {way_out}"
            )
        manifest = read_checkpoint_manifest(parent_folder)
        _check_belongs(recipe, parent.stage, parent_folder, manifest)
        _check_architecture(recipe, parent_folder, manifest)
        check_sizes(parent_folder, manifest)
        return Origin("branch", 0, parent_folder, manifest)
    if recipe.model.initialize == "random":
        return Origin("random", 0, None, None)
    if not is_imported(run):
        return Origin("base", 0, None, None)
    manifest = read_checkpoint_manifest(run.base)
    _check_base(recipe, run.base, manifest)
    check_sizes(run.base, manifest)
    return Origin("base", 0, run.base, manifest)


def parent_digest(recipe: Recipe, run: RunFolder, stage: str) -> str | None:
    """SHA-256 of the manifest of the checkpoint a stage starts from; None for the base."""
    parent = recipe.stages[stage].parent
    if parent.stage == BASE:
        return None
    path = run.checkpoints(parent.stage) / folder_name(recipe.parent_step(stage)) / MANIFEST
    return sha256_of(path) if path.is_file() else None


def _check_belongs(recipe: Recipe, stage: str, folder: Path, manifest: CheckpointManifest) -> None:
    """A checkpoint is of the recipe and the stage that its folder stands in."""
    for what, found, wanted in (("recipe", manifest.recipe, recipe.name), ("stage", manifest.stage, stage)):
        if found != wanted:
            raise CheckpointError(
                f"{folder}: its manifest is of {what} {found!r}, and it stands in {what} {wanted!r}; put the folder "
                "back where it was made"
            )


def _check_base(recipe: Recipe, folder: Path, manifest: CheckpointManifest) -> None:
    _check_architecture(recipe, folder, manifest)
    wanted = {"name": recipe.model.base, "revision": recipe.model.base_revision}
    present = {key: manifest.origin.get(key) for key in wanted}
    if present != wanted:
        raise CheckpointError(
            f"{folder}: imported from {present['name']} (revision {present['revision']}), and the recipe says "
            f"{wanted['name']} (revision {wanted['revision']}); set model.base back, or give the recipe another name"
        )


def _check_architecture(recipe: Recipe, folder: Path, manifest: CheckpointManifest) -> None:
    theirs = validated(
        manifest.architecture, Architecture, f"{folder}: architecture", CheckpointError, "use another checkpoint"
    )
    if changed := recipe.model.architecture.differences(theirs):
        raise CheckpointError(
            f"{folder}: of another model than the recipe's: {'; '.join(changed)} there; "
            "restore model.architecture or use another run folder"
        )
