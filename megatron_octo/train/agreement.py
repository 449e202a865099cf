"""Whether a stage may go on from where it would: data order, settings, layout, learning rate, parent."""

from typing import Any

from megatron_octo.data.blend import differences
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.done import changed_settings, read_lineage
from megatron_octo.train.origin import Origin, parent_digest

RATE_TOLERANCE = 1e-9


def check_agreement(
    recipe: Recipe, run: RunFolder, stage: str, origin: Origin, order: dict[str, Any], *, accept_changes: bool
) -> list[str]:
    """Refuse to go on from a checkpoint that another recipe, another order of data or another parent made.

    Returns:
        What changed since the stage began, where `accept_changes` let it pass.

    Raises:
        CheckpointError: with what changed, and the way out.
    """
    if origin.kind == "branch":
        _check_first_rate(recipe, stage, origin)
    if origin.kind != "resume" or origin.manifest is None:
        return []
    _check_layout(recipe, stage, origin)
    lineage = read_lineage(run, stage)
    if (before := lineage["parent_manifest_sha256"]) is not None and before != parent_digest(recipe, run, stage):
        raise CheckpointError(
            f"{run.stage(stage)} branched off a checkpoint of {recipe.stages[stage].parent.stage!r} that is not there "
            "any more, or not at the mark the recipe names; undo the change, or remove that folder to train it again"
        )
    data = differences(origin.manifest.data_fingerprint, order)
    if data and not accept_changes:
        raise CheckpointError(
            f"{origin.folder}: the data is not what this stage began with, and going on would reorder it:\n  "
            + "\n  ".join(data)
            + "\nundo the change, start the stage anew in another run folder, or pass --accept-changes"
        )
    settings = changed_settings(lineage["settings"], recipe, stage)
    if settings and not accept_changes:
        raise CheckpointError(
            f"{origin.folder}: the stage began with other settings:\n  "
            + "\n  ".join(settings)
            + "\nundo the change, start the stage anew in another run folder, or pass --accept-changes"
        )
    return [*data, *settings]


def _check_layout(recipe: Recipe, stage: str, origin: Origin) -> None:
    assert origin.manifest is not None
    before, layout = origin.manifest.layout, recipe.layout(stage).model_dump(mode="json")
    fixed = ("tensor", "pipeline", "virtual_pipeline")
    changed = [f"{key} {before[key]} -> {layout[key]}" for key in fixed if before[key] != layout[key]]
    if changed and origin.manifest.resharding != "full":
        raise CheckpointError(
            f"{origin.folder}: saved with train.checkpointing.resharding=data_parallel, so {', '.join(changed)} "
            "is not possible; resume under the old layout, or from a checkpoint that a branch starts from"
        )


def _check_first_rate(recipe: Recipe, stage: str, origin: Origin) -> None:
    """A branch begins at the rate its parent really ended with."""
    if origin.manifest is None or recipe.stages[stage].learning_rate.warmup:
        return
    first, ended = learning_rate_of_step(recipe.stages[stage], 0, recipe.train), origin.manifest.learning_rate
    if abs(first - ended) > RATE_TOLERANCE * ended:
        raise CheckpointError(
            f"{stage} would begin at learning rate {first:.6g}, and its parent's checkpoint {origin.folder} ended at "
            f"{ended:.6g}; set train.learning_rate back, or give the stage a warmup"
        )
