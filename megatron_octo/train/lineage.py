"""lineage.json: what a stage began from, and the settings that decide what it trains to."""

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_json_object, validated
from megatron_octo.recipe import BASE, Recipe
from megatron_octo.recipe.versions import TRAINING_CHANGES, in_first_form
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.files import sha256_of, write_json_atomically
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.start import FromBase, Start, checkpoint_of, parent_manifest_sha256

_NOT_DECISIVE = {"micro_batch_size", "data_workers", "recompute", "checkpointing", "guards", "validation", "logging"}


class Lineage(BaseModel):
    """A stage's lineage.json. Written when the stage begins; `changes` grows with each accepted change."""

    model_config = ConfigDict(frozen=True, extra="allow")

    settings: dict[str, Any]
    """See `decisive_settings`."""
    parent_manifest_sha256: str | None
    changes: list[Any]
    """Changes that were accepted since, each with the step after which it holds."""


def read_lineage(run: RunFolder, stage: str) -> Lineage:
    """The lineage of a stage that has begun.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    way_out = f"restore it from a copy, or remove {run.stage(stage)} to train the stage again"
    raw = read_json_object(run.lineage(stage), CheckpointError, way_out, needs=tuple(Lineage.model_fields))
    return validated(raw, Lineage, str(run.lineage(stage)), CheckpointError, way_out)


def write_lineage(recipe: Recipe, run: RunFolder, stage: str, start: Start, fingerprint: dict[str, Any]) -> None:
    """Record what a new stage begins from."""
    checkpoint = checkpoint_of(start)
    lineage = {
        "stage": stage,
        "parent": recipe.stages[stage].parent.stage,
        "parent_step": recipe.parent_step(stage),
        "parent_tokens": recipe.lineage_tokens(stage),
        "parent_checkpoint": checkpoint.folder.name if checkpoint is not None else None,
        "parent_manifest_sha256": parent_manifest_sha256(recipe, run, stage),
        "base": recipe.model.base,
        "initialize": recipe.model.initialize,
        "base_manifest_sha256": sha256_of(run.base / MANIFEST) if isinstance(start, FromBase) else None,
        "seed": recipe.seed,
        "settings": decisive_settings(recipe, stage),
        "data": fingerprint,
        "changes": [],
        "began": datetime.now(UTC).isoformat(),
    }
    write_json_atomically(run.lineage(stage), lineage)


def record_accepted_changes(
    recipe: Recipe, run: RunFolder, stage: str, after_step: int, changes: tuple[str, ...], fingerprint: dict[str, Any]
) -> None:
    """Take the recipe's present settings as the stage's. Earlier settings stay listed in `changes`."""
    before = read_lineage(run, stage)
    now = {
        "settings": decisive_settings(recipe, stage),
        "data": fingerprint,
        "changes": [*before.changes, {"after_step": after_step, "changed": list(changes)}],
    }
    write_json_atomically(run.lineage(stage), before.model_dump() | now)


def decisive_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """All that decides what a stage trains to: it, its ancestors, the model, the optimizer, the seed.

    The layout is not among them, nor anything that only changes speed or what is written down.
    """
    stages = {name: recipe.stages[name].model_dump(mode="json") for name in recipe.ancestry(stage)}
    for settings in stages.values():
        del settings["parallel"], settings["description"]
    train = recipe.train.model_dump(mode="json", exclude=_NOT_DECISIVE)
    return {"seed": recipe.seed, "model": recipe.model.model_dump(mode="json"), "train": train, "stages": stages}


def changed_settings(lineage: Lineage, recipe: Recipe, stage: str) -> list[str]:
    """Dotted keys of a stage's stored settings that the recipe has other values for now.

    Keys that came or went since they were stored count where they change what is trained.
    """
    before = in_first_form(lineage.settings, TRAINING_CHANGES)
    return _changed_keys(before, in_first_form(decisive_settings(recipe, stage), TRAINING_CHANGES))


def _changed_keys(before: Any, after: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        dotted = [(name, f"{key}.{name}" if key else name) for name in names]
        return [line for name, where in dotted for line in _changed_keys(before.get(name), after.get(name), where)]
    return [] if before == after else [f"{key} was {before!r}, is {after!r}"]


def complete_result(recipe: Recipe, run: RunFolder, stage: str) -> dict[str, Any] | None:
    """The result of a stage that is complete; None where it is not.

    Raises:
        CheckpointError: it was trained with other settings, or its parent has been trained again since.
    """
    path = run.result(stage)
    if not path.is_file():
        return None
    lineage = read_lineage(run, stage)
    if changed := changed_settings(lineage, recipe, stage):
        raise CheckpointError(
            f"{run.stage(stage)} was trained with other settings:\n  " + "\n  ".join(changed) + "\n"
            "undo the change, give the recipe another name (-s name=..., and prepare its data), or remove that folder "
            "to train it again"
        )
    if recipe.stages[stage].parent.stage != BASE:
        digest = parent_manifest_sha256(recipe, run, stage)
        if digest is not None and digest != lineage.parent_manifest_sha256:
            raise CheckpointError(
                f"{run.stage(stage)} branched off a checkpoint of {recipe.stages[stage].parent.stage!r} that has been "
                "trained again since; remove that folder to train the branch again"
            )
    way_out = "remove it and run the same command again: the stage is validated again and its result written"
    return read_json_object(path, CheckpointError, way_out, needs=("tokens", "last_loss"))
