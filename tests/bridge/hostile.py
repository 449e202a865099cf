"""Checkpoint folders in which a pickle waits: in `.metadata`, in `common.pt`, or among the tensors."""

import io
import json
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_octo.runtime.files import sha256_of
from tests.runtime.hostile import HOSTILE

PLACES = ("metadata", "common", "object")


def plant(folder: Path, place: str, marker: Path, kind: str = "os.system") -> None:
    """Put a pickle that makes `marker` into a checkpoint, whose manifest vouches for it afterwards."""
    value = HOSTILE[kind](marker)
    if place == "metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(value))
    elif place == "common":
        torch.save(value, folder / "common.pt")
    else:
        _plant_object(folder, value)
    if (folder / "manifest.json").is_file():
        vouch(folder)


def _plant_object(folder: Path, value: object) -> None:
    metadata = FileSystemReader(folder).read_metadata()
    index = next(index for index in metadata.storage_data if "_extra_state" in index.fqn)
    info = metadata.storage_data[index]
    saved = io.BytesIO()
    torch.save(value, saved)
    with open(folder / info.relative_path, "ab") as file:
        info.offset, info.length = file.tell(), file.write(saved.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def vouch(folder: Path) -> None:
    """Write the sizes and hashes of what is there into the manifest, in the form that has no digest of its own."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("digest", None)
    manifest["format"] = 1
    for record in manifest["files"]:
        file = folder / record["path"]
        record |= {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forget(folder: Path, name: str) -> None:
    """Take a file out of the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [record for record in manifest["files"] if record["path"] != name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
