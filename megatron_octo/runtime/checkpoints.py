"""Checkpoint folders: their names, what makes one complete, and how one is verified.

A checkpoint is a folder `step-0000500/` with a `manifest.json` that was written last and lists every other file
with its size and SHA-256. It is made under a hidden name and renamed, so a folder under the final name is whole.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.files import sha256_of_all

MANIFEST = "manifest.json"
_STEP = re.compile(r"^step-(\d{7,})$")


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """What a checkpoint holds and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    recipe: str
    stage: str
    step: int
    """Optimizer steps done within the stage."""
    stage_tokens: int
    lineage_tokens: int
    """Tokens since the base model, over all ancestors."""
    learning_rate: float
    """The rate of the last step done."""
    layout: dict[str, Any]
    resharding: str
    """`full`, or `data_parallel`: what may change at a resume."""
    architecture: dict[str, Any]
    data_fingerprint: dict[str, Any]
    origin: dict[str, Any] = {}
    """Of an imported model: where its weights are from."""
    spikes: list[int] = []
    first_loss: float | None = None
    last_loss: float | None = None
    wall_seconds: float = 0.0
    versions: dict[str, str] = {}
    files: list[FileRecord] = []


def folder_name(step: int) -> str:
    """`step-0000500`."""
    return f"step-{step:07d}"


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where a checkpoint is written before it is whole."""
    return checkpoints / f".{folder_name(step)}.partial"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    if not checkpoints.is_dir():
        return []
    found = [(_STEP.match(entry.name), entry) for entry in checkpoints.iterdir()]
    return sorted(int(match.group(1)) for match, entry in found if match and (entry / MANIFEST).is_file())


def read_checkpoint_manifest(folder: Path) -> CheckpointManifest:
    """The manifest of a complete checkpoint.

    Raises:
        CheckpointError: no such folder, an incomplete one, or a manifest that cannot be read.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such checkpoint; `octo status` lists those there are")
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {MANIFEST}, so it was never completed; use another checkpoint")
    try:
        return CheckpointManifest.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint manifest ({error}); use another checkpoint") from None


def check_sizes(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare every file's size with the manifest: cheap, so it is done before each start.

    Raises:
        CheckpointError: naming the files that are missing or of another size.
    """
    wrong = []
    for record in manifest.files:
        path = folder / record.path
        size = path.stat().st_size if path.is_file() else None
        if size != record.bytes:
            wrong.append(f"{record.path}: {'missing' if size is None else f'{size} bytes'}, not {record.bytes} bytes")
    if wrong:
        raise CheckpointError(
            f"{folder}: damaged; restore it from a copy, or remove the folder to go on from the one before\n  "
            + "\n  ".join(wrong)
        )


def verify_checkpoint(folder: Path, on_bytes: Callable[[int], None] | None = None) -> CheckpointManifest:
    """Recompute every file's size and SHA-256.

    Raises:
        CheckpointError: naming each file that is missing, of another size, altered, or not in the manifest.
    """
    manifest = read_checkpoint_manifest(folder)
    wrong, present = [], []
    for record in manifest.files:
        path = folder / record.path
        if not path.is_file():
            wrong.append(f"{record.path}: missing")
        elif path.stat().st_size != record.bytes:
            wrong.append(f"{record.path}: {path.stat().st_size} bytes, the manifest says {record.bytes}")
        else:
            present.append(record)
    digests = sha256_of_all([folder / record.path for record in present], on_bytes)
    for record, digest in zip(present, digests, strict=True):
        if digest != record.sha256:
            wrong.append(f"{record.path}: SHA-256 {digest[:12]}..., the manifest says {record.sha256[:12]}...")
    listed = {record.path for record in manifest.files} | {MANIFEST}
    wrong += [f"{name}: not in the manifest" for name in sorted(set(files_below(folder)) - listed)]
    if wrong:
        raise CheckpointError(
            f"{folder}: damaged; restore it from a copy or go on from an earlier checkpoint\n  " + "\n  ".join(wrong)
        )
    return manifest


def files_below(folder: Path) -> list[str]:
    """Paths of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def record_files(folder: Path, on_bytes: Callable[[int], None] | None = None) -> list[FileRecord]:
    """Size and SHA-256 of every file in a folder."""
    names = files_below(folder)
    digests = sha256_of_all([folder / name for name in names], on_bytes)
    sizes = [(folder / name).stat().st_size for name in names]
    return [FileRecord(path=n, bytes=b, sha256=d) for n, b, d in zip(names, sizes, digests, strict=True)]


def remove_partial_checkpoints(checkpoints: Path) -> list[str]:
    """Delete what interrupted saves left; names what it deleted."""
    leftovers = [*checkpoints.glob(".step-*.partial"), *checkpoints.glob(".step-*.old")]
    for entry in leftovers:
        shutil.rmtree(entry)
    return [entry.name for entry in leftovers]


def remove_checkpoint(checkpoints: Path, step: int) -> None:
    """Delete a checkpoint; at no moment is half of one under a final name."""
    old = checkpoints / f".{folder_name(step)}.old"
    (checkpoints / folder_name(step)).rename(old)
    shutil.rmtree(old)
