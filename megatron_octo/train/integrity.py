"""Hashes everything a stage starts from before it is used: the checkpoint, and the prepared data of its mixture.

A file with a flipped bit has the right size, loads without an error, and is trained on. The files are divided among the
ranks, and each rank hashes on all of its cores.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from megatron_octo.data.manifest import read_manifest
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.checkpoints import MANIFEST, CheckpointManifest
from megatron_octo.runtime.groups import from_first_rank, run_on_all_ranks
from megatron_octo.runtime.rank import Rank
from megatron_octo.runtime.recorded_files import RecordedFile, find_damage, find_unrecorded, locate
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.plan import StagePlan
from megatron_octo.train.start import checkpoint_of


def checkpoint_files(folder: Path, manifest: CheckpointManifest) -> dict[Path, RecordedFile]:
    """The files of a checkpoint.

    Raises:
        CheckpointError: a file that the manifest does not list.
    """
    if surplus := find_unrecorded(folder, manifest.files, {MANIFEST}):
        raise CheckpointError(
            f"{folder}: {', '.join(surplus[:4])} {'is' if len(surplus) == 1 else 'are'} not in its manifest; remove "
            "what does not belong there, or restore the folder from a copy"
        )
    return locate(folder, manifest.files)


def data_files(recipe: Recipe, run: RunFolder, stage: str) -> dict[Path, RecordedFile]:
    """The prepared files of the sources that a stage draws from, both splits."""
    found: dict[Path, RecordedFile] = {}
    for source in recipe.stages[stage].mixture:
        folder = run.source(source)
        manifest = read_manifest(folder)
        for split in (manifest.train, manifest.validation):
            found |= locate(folder, split.files)
    return found


def verify_inputs(plan: StagePlan, rank: Rank, on_wait: Callable[[], None]) -> str:
    """Hash what the stage starts from. Every rank calls it. Returns a line for the log: how much, and how long.

    Raises:
        CheckpointError: naming each damaged file; on every rank.
    """
    data = from_first_rank(lambda: data_files(plan.recipe, plan.run, plan.name))
    way_out = f"restore them from a copy, or remove their folders and run `octo data prepare {plan.recipe.name}`"
    size, seconds = verify_files(data, rank, way_out, on_wait)
    if (checkpoint := checkpoint_of(plan.start)) is not None:
        weights = from_first_rank(lambda: checkpoint_files(checkpoint.folder, checkpoint.manifest))
        way_out = "restore the checkpoint from a copy, or remove its folder to resume from the one before"
        more = verify_files(weights, rank, way_out, on_wait)
        size, seconds = size + more[0], seconds + more[1]
    return f"{size / 1e9:.3g} GB of data and weights hashed in {seconds:.1f} s: as recorded"


def verify_files(
    files: Mapping[Path, RecordedFile], rank: Rank, way_out: str, on_wait: Callable[[], None]
) -> tuple[int, float]:
    """Compare files with what is recorded of them. Every rank calls it, with the same files.

    Args:
        on_wait: called every few seconds while some rank is at it.

    Returns:
        The bytes hashed, and the seconds that took.

    Raises:
        CheckpointError: naming each damaged file; on every rank.
    """
    start = time.monotonic()
    # the largest first, so that no rank ends with the largest alone
    mine = sorted(files.items(), key=lambda item: -item[1].bytes)[rank.rank :: rank.world_size]
    gathered: list[list[str]] = [[] for _ in range(rank.world_size)]
    torch.distributed.all_gather_object(gathered, run_on_all_ranks(lambda: _damage(dict(mine)), on_wait))
    if wrong := sorted(line for part in gathered for line in part):
        shown = wrong[:12] + ([f"and {len(wrong) - 12} more"] if len(wrong) > 12 else [])
        raise CheckpointError("damaged files, which would be trained on:\n  " + "\n  ".join(shown) + f"\n{way_out}")
    return sum(file.bytes for file in files.values()), time.monotonic() - start


def _damage(files: Mapping[Path, RecordedFile]) -> list[str]:
    return [f"{path}: {problem}" for path, problem in find_damage(files)]
