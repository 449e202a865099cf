"""Everything a stage starts from is hashed before it is used: the checkpoint, and the prepared data of its mixture.

A flipped bit has the right size, loads without an error, and is trained on. The files are shared out over the ranks;
each rank hashes on all of its cores.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_octo.data.manifest import read_manifest
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.checkpoints import MANIFEST, CheckpointManifest, files_below
from megatron_octo.runtime.files import sha256_of_all
from megatron_octo.runtime.groups import together
from megatron_octo.runtime.rank import Rank
from megatron_octo.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class RecordedFile:
    """A file, and what a manifest says of it."""

    path: Path
    bytes: int
    sha256: str


def checkpoint_files(folder: Path, manifest: CheckpointManifest) -> list[RecordedFile]:
    """The files of a checkpoint.

    Raises:
        CheckpointError: a file that the manifest does not list.
    """
    listed = {record.path for record in manifest.files} | {MANIFEST}
    if surplus := sorted(set(files_below(folder)) - listed):
        raise CheckpointError(
            f"{folder}: {', '.join(surplus[:4])} {'is' if len(surplus) == 1 else 'are'} not in its manifest; remove "
            "what does not belong there, or restore the folder from a copy"
        )
    return [RecordedFile(folder / record.path, record.bytes, record.sha256) for record in manifest.files]


def data_files(recipe: Recipe, run: RunFolder, stage: str) -> list[RecordedFile]:
    """The prepared files of the sources that a stage draws from, both splits."""
    found = []
    for source in recipe.stages[stage].mixture:
        folder = run.source(source)
        manifest = read_manifest(folder)
        for split in (manifest.train, manifest.validation):
            found += [RecordedFile(folder / file.path, file.bytes, file.sha256) for file in split.files]
    return found


def damaged_files(files: Sequence[RecordedFile]) -> list[str]:
    """What is wrong with which file."""
    wrong, present = [], []
    for file in files:
        size = file.path.stat().st_size if file.path.is_file() else None
        if size != file.bytes:
            wrong.append(f"{file.path}: {'missing' if size is None else f'{size} bytes'}, not {file.bytes} bytes")
        else:
            present.append(file)
    for file, digest in zip(present, sha256_of_all([file.path for file in present]), strict=True):
        if digest != file.sha256:
            wrong.append(f"{file.path}: SHA-256 {digest[:12]}..., the manifest says {file.sha256[:12]}...")
    return wrong


def verify_files(
    files: Sequence[RecordedFile], rank: Rank, way_out: str, on_wait: Callable[[], None]
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
    mine = sorted(files, key=lambda file: -file.bytes)[rank.rank :: rank.world_size]
    gathered: list[list[str]] = [[] for _ in range(rank.world_size)]
    torch.distributed.all_gather_object(gathered, together(lambda: damaged_files(mine), on_wait))
    if wrong := sorted(line for part in gathered for line in part):
        shown = wrong[:12] + ([f"and {len(wrong) - 12} more"] if len(wrong) > 12 else [])
        raise CheckpointError("damaged files, which would be trained on:\n  " + "\n  ".join(shown) + f"\n{way_out}")
    return sum(file.bytes for file in files), time.monotonic() - start
