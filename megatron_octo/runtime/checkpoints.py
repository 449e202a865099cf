"""Checkpoint folders: their names, when one is complete, and how one is verified.

A checkpoint is a folder `step-0000500/` with a `manifest.json` that was written last and lists every other file with
its size and SHA-256. It is made under a hidden name and renamed, so a folder with the final name is complete.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_record
from megatron_octo.runtime.files import sha256_of_json, write_text_atomically
from megatron_octo.runtime.progress import byte_progress, bytes_of
from megatron_octo.runtime.recorded_files import Damage, RecordedFile, find_damage, find_unrecorded, locate

MANIFEST = "manifest.json"
_STEP = re.compile(r"^step-(\d{7,})$")


class CheckpointManifest(BaseModel):
    """The content of a checkpoint and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=2, ge=1, le=2)
    """1: written before manifests had a digest."""
    digest: str | None = None
    """SHA-256 of all other fields."""
    recipe: str
    stage: str
    step: int = Field(ge=0)
    """Optimizer steps of the stage so far."""
    stage_tokens: int
    lineage_tokens: int
    """Tokens since the base model, including all ancestors."""
    learning_rate: float
    """The learning rate of the last step."""
    layout: dict[str, Any]
    resharding: str
    """Layout changes that a resume may make: `full` or `data_parallel`."""
    architecture: dict[str, Any]
    data_fingerprint: dict[str, Any]
    origin: dict[str, Any] = {}
    """Where the weights of an imported model come from."""
    spikes: list[int] = []
    first_loss: float | None = None
    last_loss: float | None = None
    wall_seconds: float = 0.0
    versions: dict[str, str] = {}
    files: list[RecordedFile] = []

    def own_digest(self) -> str:
        """The value that `digest` must have."""
        return sha256_of_json(self.model_dump(mode="json", exclude={"digest"}))


def folder_name(step: int) -> str:
    """`step-0000500`."""
    return f"step-{step:07d}"


def partial_folder(checkpoints: Path, step: int) -> Path:
    """The folder that a checkpoint is written to before it is complete."""
    return checkpoints / f".{folder_name(step)}.partial"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending."""
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
        raise CheckpointError(f"{folder}: there is no such checkpoint; `octo status` lists the existing ones")
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {MANIFEST}, so it is not complete; use another checkpoint")
    manifest = read_record(path, CheckpointManifest, CheckpointError, _ANOTHER)
    if manifest.format >= 2 and manifest.digest != manifest.own_digest():
        raise CheckpointError(f"{path}: altered since it was written (its own SHA-256 differs); {_ANOTHER}")
    name = _STEP.match(folder.name)
    if name and int(name.group(1)) != manifest.step:
        raise CheckpointError(
            f"{path}: is of step {manifest.step}, in a folder of step {int(name.group(1))}; rename the folder back, or "
            "use another checkpoint"
        )
    return manifest


_ANOTHER = "not a usable checkpoint manifest; use another checkpoint"


def write_checkpoint_manifest(folder: Path, manifest: CheckpointManifest) -> CheckpointManifest:
    """Write a manifest with its digest, as the last file of a checkpoint. Returns the manifest with the digest."""
    complete = manifest.model_copy(update={"digest": manifest.own_digest()})
    write_text_atomically(folder / MANIFEST, complete.model_dump_json(indent=2) + "\n")
    return complete


def check_sizes(folder: Path, manifest: CheckpointManifest) -> None:
    """Compare every file's size with the manifest. It is cheap, so every start does it before anything else.

    Raises:
        CheckpointError: naming each file that is missing or of another size.
    """
    if damage := find_damage(locate(folder, manifest.files), hashes=False):
        raise CheckpointError(
            f"{folder}: damaged; restore it from a copy, or remove the folder to resume from the one before\n  "
            + "\n  ".join(_described(folder, damage))
        )


def verify_checkpoint(folder: Path, on_bytes: Callable[[int], None] | None = None) -> CheckpointManifest:
    """Compare every file's size and SHA-256 with the manifest.

    Args:
        on_bytes: called with the size of every block read, from several threads.

    Raises:
        CheckpointError: naming each file that is missing, of another size, altered, or not in the manifest.
    """
    manifest = read_checkpoint_manifest(folder)
    wrong = _described(folder, find_damage(locate(folder, manifest.files), on_bytes))
    wrong += [f"{name}: not in the manifest" for name in find_unrecorded(folder, manifest.files, {MANIFEST})]
    if wrong:
        raise CheckpointError(
            f"{folder}: damaged; restore it from a copy or resume from an earlier checkpoint\n  " + "\n  ".join(wrong)
        )
    return manifest


def verify_checkpoints(path: Path) -> None:
    """Verify a checkpoint, or every complete one in a folder of them; print a line for each that is intact.

    Raises:
        CheckpointError: there is no checkpoint, or one is damaged, as in `verify_checkpoint`.
    """
    steps = [] if (path / MANIFEST).is_file() else complete_steps(path)
    for folder in [path / folder_name(step) for step in steps] or [path]:
        with byte_progress(folder.name, bytes_of(folder)) as on_bytes:
            manifest = verify_checkpoint(folder, on_bytes)
        print(f"{folder}: intact ({len(manifest.files)} files, {sum(f.bytes for f in manifest.files):,} bytes)")


def _described(folder: Path, damage: Sequence[Damage]) -> list[str]:
    return [f"{path.relative_to(folder)}: {problem}" for path, problem in damage]


def remove_partial_checkpoints(checkpoints: Path) -> list[str]:
    """Delete the remains of interrupted saves. Returns their names."""
    leftovers = [*checkpoints.glob(".step-*.partial"), *checkpoints.glob(".step-*.old")]
    for entry in leftovers:
        shutil.rmtree(entry)
    return [entry.name for entry in leftovers]


def remove_checkpoint(checkpoints: Path, step: int) -> None:
    """Delete a checkpoint. Its final name never belongs to a part of one."""
    old = checkpoints / f".{folder_name(step)}.old"
    (checkpoints / folder_name(step)).rename(old)
    shutil.rmtree(old)
