"""Files with a recorded size and SHA-256: recording them, and finding those that have changed since."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from megatron_octo.runtime.files import sha256_of_all


class RecordedFile(BaseModel):
    """One file of a folder, as it was when it was recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """Relative to the folder, and below it."""
    bytes: int = Field(ge=0)
    sha256: str

    @field_validator("path")
    @classmethod
    def _check_below(cls, path: str) -> str:
        if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("a path that leaves the folder")
        return path


class Damage(NamedTuple):
    """A file that is no longer as it was recorded."""

    path: Path
    problem: str
    """The size or hash found, and the one recorded."""


def files_below(folder: Path) -> list[str]:
    """Paths of all files in a folder and below, relative to it, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def record_files(folder: Path, on_bytes: Callable[[int], None] | None = None) -> list[RecordedFile]:
    """Size and SHA-256 of every file in a folder and below.

    Args:
        on_bytes: called with the size of every block read, from several threads.
    """
    names = files_below(folder)
    digests = sha256_of_all([folder / name for name in names], on_bytes)
    sizes = [(folder / name).stat().st_size for name in names]
    return [RecordedFile(path=n, bytes=b, sha256=d) for n, b, d in zip(names, sizes, digests, strict=True)]


def locate(folder: Path, records: Iterable[RecordedFile]) -> dict[Path, RecordedFile]:
    """Records by the place of their file."""
    return {folder / record.path: record for record in records}


def find_unrecorded(folder: Path, records: Iterable[RecordedFile], besides: Collection[str]) -> list[str]:
    """Files in a folder and below that have no record.

    Args:
        besides: files that are expected without a record, relative to the folder.
    """
    return sorted(set(files_below(folder)) - {record.path for record in records} - set(besides))


def find_damage(
    files: Mapping[Path, RecordedFile], on_bytes: Callable[[int], None] | None = None, *, hashes: bool = True
) -> list[Damage]:
    """Compare files with their records: sizes first, then the SHA-256 of those whose size is right.

    Args:
        files: see `locate`.
        on_bytes: called with the size of every block read, from several threads.
        hashes: also compare SHA-256, on as many threads as there are cores.

    Returns:
        The damaged files; empty if all are as they were recorded.

    Raises:
        OSError: a file cannot be read.
    """
    damage: list[Damage] = []
    present: list[Path] = []
    for path, record in files.items():
        size = path.stat().st_size if path.is_file() else None
        if size == record.bytes:
            present.append(path)
        else:
            found = "missing" if size is None else f"{size} bytes"
            damage.append(Damage(path, f"{found}, recorded with {record.bytes} bytes"))
    if hashes:
        for path, digest in zip(present, sha256_of_all(present, on_bytes), strict=True):
            if digest != files[path].sha256:
                damage.append(Damage(path, f"SHA-256 {digest[:12]}..., recorded as {files[path].sha256[:12]}..."))
    return damage
