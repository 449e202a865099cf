"""What is known of a prepared source: `manifest.json`, written last, beside the tokens it describes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_octo.errors import DataError
from megatron_octo.runtime.files import sha256_of

MANIFEST = "manifest.json"
SplitName = Literal["train", "validation"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class TokenFile(_Record):
    """A file of a split."""

    path: str
    """Relative to the manifest's folder."""
    bytes: int
    sha256: str


class Split(_Record):
    """Tokens for one use. Documents end with the end-of-document token, which `tokens` counts."""

    documents: int
    tokens: int
    files: tuple[TokenFile, ...]


class TokenizerRecord(_Record):
    """The tokenizer that made the tokens."""

    name: str
    sha256: str
    """Of its tokenizer.json."""
    vocab_size: int
    """Highest id, and one."""
    end_of_document: str
    end_of_document_id: int


class InputFile(_Record):
    """A local file that was read."""

    path: str
    bytes: int
    sha256: str


class SourceManifest(_Record):
    """A prepared source. A manifest that is there is complete: the folder is renamed into place with it."""

    format_version: Literal[1] = 1
    source: str
    kind: Literal["jsonl", "parquet", "hub", "builtin"]
    origin: dict[str, Any]
    """Where the text is from: paths, data set, or corpus and seed."""
    revision: str | None
    """Commit of a hub data set."""
    licence: str
    settings_digest: str
    """SHA-256 of everything that decides the tokens (see `settings.py`)."""
    tokenizer: TokenizerRecord
    token_dtype: Literal["uint16", "int32"]
    train: Split
    validation: Split
    inputs: tuple[InputFile, ...]
    rows_read: int
    bad_rows: dict[str, int]
    """Rows that could not be used, by reason."""
    contaminated: dict[str, int]
    """Documents dropped, by evaluation set."""
    validation_duplicates: int
    """Documents left out of training because their text is a validation document's."""
    versions: dict[str, str]

    def prefixes(self, folder: Path, split: SplitName) -> list[Path]:
        """Paths of a split without `.bin`/`.idx`, as Megatron wants them."""
        files: tuple[TokenFile, ...] = getattr(self, split).files
        return [(folder / file.path).with_suffix("") for file in files if file.path.endswith(".bin")]


def read_manifest(folder: Path) -> SourceManifest:
    """The manifest of a prepared source.

    Raises:
        DataError: there is none, it is damaged, or it is of another version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{folder}: not prepared (no {MANIFEST}); run `octo data prepare`") from None
    try:
        return SourceManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: not a manifest this version reads ({where}: {first['msg']}); "
            f"remove {folder} and run `octo data prepare`"
        ) from None


def verify_manifest(folder: Path, manifest: SourceManifest) -> None:
    """Read every token file again and compare its size and SHA-256 with the manifest.

    Raises:
        DataError: a file is missing or differs.
    """
    for split in (manifest.train, manifest.validation):
        for file in split.files:
            path = folder / file.path
            if not path.is_file():
                raise DataError(f"{path}: missing, though the manifest lists it; {_again(folder)}")
            if (size := path.stat().st_size) != file.bytes:
                raise DataError(f"{path}: {size} bytes, but the manifest says {file.bytes}; {_again(folder)}")
            if (digest := sha256_of(path)) != file.sha256:
                raise DataError(
                    f"{path}: SHA-256 {digest[:12]}..., but the manifest says {file.sha256[:12]}...; {_again(folder)}"
                )


def _again(folder: Path) -> str:
    return f"remove {folder} and run `octo data prepare`"
