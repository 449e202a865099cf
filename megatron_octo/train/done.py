"""Whether a stage is done, and with the settings that the recipe has now."""

from typing import Any

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import json_kind, read_json_object
from megatron_octo.recipe import BASE, Recipe
from megatron_octo.recipe.versions import TRAINING_CHANGES, in_first_form
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.origin import parent_digest

_NOT_DECISIVE = ("micro_batch_size", "data_workers", "recompute", "checkpointing", "guards", "validation", "logging")


def decisive_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """All that decides what a stage trains to: it, its ancestors, the model, the optimizer, the seed.

    The layout is not among them, nor what only changes speed or what is written down.
    """
    stages = {name: recipe.stages[name].model_dump(mode="json") for name in recipe.ancestry(stage)}
    for settings in stages.values():
        del settings["parallel"], settings["description"]
    train = recipe.train.model_dump(mode="json", exclude=set(_NOT_DECISIVE))
    return {"seed": recipe.seed, "model": recipe.model.model_dump(mode="json"), "train": train, "stages": stages}


def finished_result(recipe: Recipe, run: RunFolder, stage: str) -> dict[str, Any] | None:
    """The result of a stage that is done; None where it is not.

    Raises:
        CheckpointError: it was done with other settings, or from a parent that has been trained again since.
    """
    path = run.result(stage)
    if not path.is_file():
        return None
    lineage = read_lineage(run, stage)
    changed = changed_settings(lineage["settings"], recipe, stage)
    if changed:
        raise CheckpointError(
            f"{run.stage(stage)} was trained with other settings:\n  " + "\n  ".join(changed) + "\n"
            "undo the change, give the recipe another name (-s name=..., and prepare its data), or remove that folder "
            "to train it again"
        )
    if recipe.stages[stage].parent.stage != BASE:
        digest = parent_digest(recipe, run, stage)
        if digest is not None and digest != lineage["parent_manifest_sha256"]:
            raise CheckpointError(
                f"{run.stage(stage)} branched off a checkpoint of {recipe.stages[stage].parent.stage!r} that has been "
                "trained again since; remove that folder to train the branch again"
            )
    return read_json_object(path, CheckpointError, _RESULT_LOST, needs=("tokens", "last_loss"))


_RESULT_LOST = "remove it and run the same command again: the stage is validated again and its result written"


def read_lineage(run: RunFolder, stage: str) -> dict[str, Any]:
    """What a stage's lineage.json says.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    needs = ("settings", "parent_manifest_sha256", "changes")
    way_out = f"restore it from a copy, or remove {run.stage(stage)} to train the stage again"
    lineage = read_json_object(run.lineage(stage), CheckpointError, way_out, needs)
    for key, kind in (("settings", dict), ("changes", list)):
        if not isinstance(lineage[key], kind):
            raise CheckpointError(f"{run.lineage(stage)}: {key} is {json_kind(lineage[key])}; {way_out}")
    return lineage


def changed_settings(before: dict[str, Any], recipe: Recipe, stage: str) -> list[str]:
    """Dotted keys of a stage's stored settings that the recipe has other values for now.

    Keys that came or went since they were stored count where they change what is trained.
    """
    after = decisive_settings(recipe, stage)
    return changed_keys(in_first_form(before, TRAINING_CHANGES), in_first_form(after, TRAINING_CHANGES))


def changed_keys(before: Any, after: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        dotted = [(name, f"{key}.{name}" if key else name) for name in names]
        return [line for name, where in dotted for line in changed_keys(before.get(name), after.get(name), where)]
    return [] if before == after else [f"{key} was {before!r}, is {after!r}"]
