"""The record of a prepared source: `manifest.json`, written last, in the folder of the tokens it describes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_record
from megatron_octo.reading.text import shown_path
from megatron_octo.runtime.recorded_files import RecordedFile, find_damage, locate

MANIFEST = "manifest.json"
SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]
"""The name of a file in the manifest's own folder, so that a manifest cannot point outside it."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class TokenFile(RecordedFile):
    """A file of a split."""

    path: FileName
    """In the manifest's folder."""
    sha256: Sha256


class Split(_Record):
    """The tokens of one split. Documents end with the end-of-document token, which `tokens` includes."""

    documents: NonNegativeInt
    tokens: NonNegativeInt
    files: tuple[TokenFile, ...]


class TokenizerRecord(_Record):
    """The tokenizer that made the tokens."""

    name: str
    sha256: Sha256
    """SHA-256 of its tokenizer.json."""
    vocab_size: NonNegativeInt
    """The highest id plus one."""
    end_of_document: str
    end_of_document_id: NonNegativeInt


class InputFile(_Record):
    """A local input file."""

    path: str
    bytes: NonNegativeInt
    sha256: Sha256


class SourceManifest(_Record):
    """A prepared source. If there is a manifest, the source is complete: the folder is renamed with it in place."""

    format_version: Literal[1] = 1
    source: str
    kind: Literal["jsonl", "parquet", "hub", "builtin"]
    origin: dict[str, Any]
    """Where the text comes from: paths, data set, or corpus and seed."""
    revision: str | None
    """Commit of a hub data set."""
    licence: str
    settings_digest: str
    """SHA-256 of all settings that decide the tokens (see `settings.py`)."""
    tokenizer: TokenizerRecord
    token_dtype: Literal["uint16", "int32"]
    train: Split
    validation: Split
    inputs: tuple[InputFile, ...]
    rows_read: NonNegativeInt
    bad_rows: dict[str, NonNegativeInt]
    """Number of rows that could not be used, by reason."""
    contaminated: dict[str, NonNegativeInt]
    """Number of documents that decontamination dropped, by evaluation set."""
    validation_duplicates: NonNegativeInt
    """Number of documents left out of training because a validation document has the same text."""
    versions: dict[str, str]

    def prefixes(self, folder: Path, split: SplitName) -> list[Path]:
        """Paths of a split without `.bin`/`.idx`, as Megatron expects them."""
        return [(folder / file.path).with_suffix("") for file in _files(self, split) if file.path.endswith(".bin")]


def read_manifest(folder: Path) -> SourceManifest:
    """The manifest of a prepared source.

    Raises:
        DataError: there is none, it is damaged, or it has another version.
    """
    path = folder / MANIFEST
    if not folder.is_dir() or not path.exists():
        raise DataError(f"{folder}: not prepared (no {MANIFEST}); run `octo data prepare`")
    manifest = read_record(path, SourceManifest, DataError, f"not a manifest that this version reads; {_again(folder)}")
    for split in SPLITS:
        _check_pair(path, folder, split, getattr(manifest, split))
    return manifest


def _check_pair(path: Path, folder: Path, split: SplitName, record: Split) -> None:
    names = [file.path for file in record.files]
    stems = {name.removesuffix(".bin") for name in names if name.endswith(".bin")}
    if not stems or sorted(names) != sorted(f"{stem}{suffix}" for stem in stems for suffix in (".bin", ".idx")):
        raise DataError(
            f"{path}: {split}.files = {names}: not pairs of .bin and .idx; not a manifest that this version reads; "
            f"{_again(folder)}"
        )


def split_bytes(manifest: SourceManifest, splits: Sequence[SplitName] = SPLITS) -> int:
    """Number of bytes that `verify_manifest` reads, for progress bars."""
    return sum(file.bytes for split in splits for file in _files(manifest, split))


def verify_manifest(
    folder: Path,
    manifest: SourceManifest,
    on_bytes: Callable[[int], None] | None = None,
    splits: Sequence[SplitName] = SPLITS,
) -> None:
    """Compare size and SHA-256 of the token files with the manifest, on as many threads as there are cores.

    Args:
        on_bytes: called with the size of every block read, from several threads.

    Raises:
        DataError: naming each file that is missing or differs; or a file cannot be read.
    """
    files = [file for split in splits for file in _files(manifest, split)]
    try:
        damage = find_damage(locate(folder, files), on_bytes)
    except OSError as error:
        raise _unreadable(Path(error.filename or folder), error) from None
    if damage:
        wrong = "; ".join(f"{path}: {problem}" for path, problem in damage)
        raise DataError(f"{wrong}; {_again(folder)}")


def _files(manifest: SourceManifest, split: SplitName) -> tuple[TokenFile, ...]:
    return manifest.train.files if split == "train" else manifest.validation.files


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown_path(path)}: cannot be read ({error.strerror}); correct its permissions, or the disk")


def _again(folder: Path) -> str:
    return f"remove {folder} and run `octo data prepare`"
