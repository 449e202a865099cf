"""The record of an export: writing it, and comparing an export with it before the export is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_record
from megatron_octo.runtime.files import write_json_atomically
from megatron_octo.runtime.links import check_inside
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.recorded_files import RecordedFile, find_damage, find_unrecorded, locate

if TYPE_CHECKING:
    from megatron_octo.bridge.verify import TensorReport

RECORD = "octo_export.json"
"""The record inside an export: its checkpoint, and the hashes of its files."""
CARD = "README.md"
"""The model card of an export. It has no hash, so that a user can edit it."""
_LOADED = {
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".json", ".jinja", ".model", ".py",
}  # fmt: skip
"""Suffixes of files that transformers, vLLM or PEFT would load from a model's folder."""


class ExportRecord(BaseModel):
    """`octo_export.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    checkpoint: str
    checkpoint_manifest_sha256: str | None
    """None: another program saved the checkpoint."""
    files: list[RecordedFile] = Field(min_length=1)


def write_export_record(
    folder: Path, checkpoint: Path, digest: str | None, report: "TensorReport", files: Sequence[RecordedFile]
) -> None:
    """Write `octo_export.json`.

    Args:
        checkpoint: the folder that was exported.
        digest: SHA-256 of its manifest. None: it has none.
    """
    record = {
        "checkpoint": checkpoint.name,
        "checkpoint_manifest_sha256": digest,
        "tensors_equal": report.tensors,
        "rounded_to_inf": report.to_inf,
        "rounded_to_zero": report.to_zero,
        "files": [file.model_dump() for file in files],
    }
    write_json_atomically(folder / RECORD, record)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of ours, complete or not."""
    return (folder / RECORD).is_file()


def exported_digest(folder: Path) -> str | None:
    """SHA-256 of the manifest of the checkpoint that a folder was exported from; None if there is no export.

    Raises:
        CheckpointError: an octo_export.json that is empty or damaged.
    """
    return _record(folder).checkpoint_manifest_sha256 if is_export(folder) else None


def checked_export(folder: Path, way_out: str) -> str | None:
    """As `exported_digest`, after comparing every file of the export with its record.

    Hashing uses all cores and takes seconds for a model of a billion parameters.

    Args:
        way_out: how to make the export again, for the message.

    Raises:
        CheckpointError: no export, a damaged record, or files that are missing, altered, or were added since and would
            be loaded; each by name.
    """
    if not is_export(folder):
        raise CheckpointError(f"{folder}: no {RECORD}, so it is not an export; {way_out}")
    record = _record(folder)
    files = locate(folder, record.files)
    for path in files:
        check_inside(folder, path, CheckpointError)
    with byte_progress(f"check {folder}", sum(file.bytes for file in record.files)) as on_bytes:
        damage = find_damage(files, on_bytes)
    wrong = [f"{name}: not of this export" for name in _surplus(folder, record)]
    wrong += [f"{path.relative_to(folder)}: {problem}" for path, problem in damage]
    if wrong:
        shown = wrong[:8] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
        raise CheckpointError(f"{folder}: not what was exported; {way_out}\n  " + "\n  ".join(shown))
    return record.checkpoint_manifest_sha256


def _record(folder: Path) -> ExportRecord:
    check_inside(folder, folder / RECORD, CheckpointError)
    try:
        return read_record(folder / RECORD, ExportRecord, CheckpointError, "not a record of an export")
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; export it again with `octo export`") from None


def _surplus(folder: Path, record: ExportRecord) -> list[str]:
    """Files that are not part of the export, and that a library would load nevertheless."""
    unrecorded = find_unrecorded(folder, record.files, {RECORD, CARD})
    return [name for name in unrecorded if Path(name).suffix.lower() in _LOADED]
