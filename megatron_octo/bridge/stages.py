"""Exports of a recipe's stages to `stages/<stage>/hf/`, where they are missing, damaged, or of an older checkpoint."""

from pathlib import Path

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.exports import checked_export, is_export
from megatron_octo.bridge.megatron_folder import open_megatron_folder
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.checkpoints import MANIFEST, folder_name
from megatron_octo.runtime.files import sha256_of
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.run_folder import RunFolder


def last_checkpoint(recipe: Recipe, run: RunFolder, stage: str) -> Path:
    """The last checkpoint of a complete stage.

    Raises:
        CheckpointError: the stage is not complete.
    """
    folder = run.checkpoints(stage) / folder_name(recipe.steps(stage))
    if not run.result(stage).is_file() or not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{stage} is not complete, so there is nothing to export; run `octo train {recipe.name} {stage}`"
        )
    return folder


def export_stages(recipe: Recipe, run: RunFolder, stages: list[str]) -> None:
    """Export the last checkpoints of the named stages. An export that is there and undamaged is skipped.

    An export that is damaged, or of an older checkpoint, is replaced once the new one is complete.

    Raises:
        CheckpointError: a stage that is not complete.
        RuntimeSetupError: the target holds something that is no export, or the disk is too small.
    """
    checkpoints = {stage: last_checkpoint(recipe, run, stage) for stage in stages}
    for stage, checkpoint in checkpoints.items():
        target = run.exported(stage)
        if is_export(target):
            try:
                before = checked_export(target, "so it is exported again")
            except CheckpointError as damaged:
                print(f"{stage}: {damaged}", flush=True)
            else:
                if before == sha256_of(checkpoint / MANIFEST):
                    print(f"{stage}: already exported ({target}), its files are undamaged; skipped", flush=True)
                    continue
        opened = open_megatron_folder(checkpoint)
        total = 2 * opened.architecture.num_parameters() * opened.dtype.itemsize
        with byte_progress(f"export {stage}", total) as on_bytes:
            report = export_checkpoint(checkpoint, target, replace=is_export(target), on_bytes=on_bytes)
        print(f"{stage}: {target}, {report.tensors} tensors read back and equal bit for bit", flush=True)
