"""An export that is there: is it still what was written? Compared with its recorded hashes before it is used."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_record
from megatron_octo.runtime.links import check_inside
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.recorded_files import RecordedFile, find_damage, find_unrecorded, locate

RECORD = "octo_export.json"
"""What an export says of itself: the checkpoint it is of, and its files' hashes."""
_CARD = "README.md"
_LOADED = {
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".json", ".jinja", ".model", ".py",
}  # fmt: skip
"""Endings of files that transformers, vLLM or PEFT would load from a model's folder."""


class ExportRecord(BaseModel):
    """`octo_export.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    checkpoint: str
    checkpoint_manifest_sha256: str | None
    """None for a checkpoint that another program saved."""
    files: list[RecordedFile] = Field(min_length=1)


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of ours, whole or not."""
    return (folder / RECORD).is_file()


def exported_digest(folder: Path) -> str | None:
    """SHA-256 of the manifest of the checkpoint that a folder was exported from; None where there is no export.

    Raises:
        CheckpointError: an octo_export.json that is empty or damaged.
    """
    return _record(folder).checkpoint_manifest_sha256 if is_export(folder) else None


def checked_export(folder: Path, way_out: str) -> str | None:
    """As `exported_digest`, once every file of the export is found to be what was written.

    Hashes are taken on all cores: seconds for a model of a billion parameters.

    Args:
        way_out: what makes the export again, for the message.

    Raises:
        CheckpointError: no export, a record that is damaged, or files that are missing, altered, or have come since and
            would be loaded; each by name.
    """
    if not is_export(folder):
        raise CheckpointError(f"{folder}: no {RECORD}, so it is no export; {way_out}")
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
        return read_record(folder / RECORD, ExportRecord, CheckpointError, "it says nothing of the export")
    except CheckpointError as damaged:
        raise CheckpointError(f"{damaged}; export it again with `octo export`") from None


def _surplus(folder: Path, record: ExportRecord) -> list[str]:
    """Files that are not of the export, and that a library would load all the same."""
    unrecorded = find_unrecorded(folder, record.files, {RECORD, _CARD})
    return [name for name in unrecorded if Path(name).suffix.lower() in _LOADED]
