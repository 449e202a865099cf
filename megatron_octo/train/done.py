"""Whether a stage is done, and with the settings that the recipe has now."""

import json
from typing import Any

from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import BASE, Recipe
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
    lineage = json.loads(run.lineage(stage).read_text())
    changed = changed_keys(lineage["settings"], decisive_settings(recipe, stage))
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
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def changed_keys(before: Any, after: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        dotted = [(name, f"{key}.{name}" if key else name) for name in names]
        return [line for name, where in dotted for line in changed_keys(before.get(name), after.get(name), where)]
    return [] if before == after else [f"{key} was {before!r}, is {after!r}"]
