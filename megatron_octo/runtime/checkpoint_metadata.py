"""A checkpoint's `.metadata`: its tensors, their shapes, and where each part is stored. Every field is checked."""

import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_json_object, shortened
from megatron_octo.runtime.links import check_inside
from megatron_octo.runtime.metadata_pickle import Record, read_pickled_records

METADATA = ".metadata"
FORMAT = "metadata.json"
MOST_METADATA_BYTES = 16 << 20
"""Room for fifty thousand parts of about 300 bytes. Llama-3.1-8B has 6,000 at tensor parallel 8."""
_MOST_PARTS = 100_000
"""Most parts of all tensors together: a pickle can list the same parts under a thousand tensors."""
_MOST_DIMENSIONS = 8
_LARGEST = 1 << 48
_OBJECT_KEY = re.compile(r".+/shard_\d{1,9}(\.\d{1,9}){0,8}_\d{1,9}(\.\d{1,9}){0,8}$", re.DOTALL)
"""Megatron's name of an object: `<key>/shard_<index>_<count>`."""


def read_checkpoint_metadata(folder: Path) -> Metadata:
    """The metadata of a torch_dist checkpoint. It is not unpickled, and every part is within a file of the folder.

    Raises:
        CheckpointError: there is none; it is larger than MOST_METADATA_BYTES, damaged, or names classes that metadata
            does not need; or a part is outside the folder, its file or its tensor.
    """
    path = folder / METADATA
    try:
        check_inside(folder, path, CheckpointError)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; restore it from a copy")
        if status.st_size > MOST_METADATA_BYTES:
            raise CheckpointError(
                f"{path}: {status.st_size:,} bytes, and at most {MOST_METADATA_BYTES:,} are read; is it the "
                "metadata of a checkpoint?"
            )
        with open(path, "rb") as file:
            data = file.read(MOST_METADATA_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {METADATA}, so it is not a torch_dist checkpoint; give the step-... folder itself"
        ) from None
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror}); correct its permissions") from None
    return _Builder(folder).metadata(read_pickled_records(data, str(path)))


def check_format(folder: Path) -> None:
    """Refuse a checkpoint that is not in version 1 of the format torch_dist.

    Raises:
        CheckpointError: it is in another format, which the message names.
    """
    if not (folder / FORMAT).is_file():
        raise CheckpointError(f"{folder}: no {FORMAT}, so it is not a Megatron checkpoint; give the right folder")
    check_inside(folder, folder / FORMAT, CheckpointError)
    found = read_json_object(folder / FORMAT, CheckpointError, "restore it from a copy")
    known = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    if found.keys() - known.keys() or any(found.get(key, value) != value for key, value in known.items()):
        raise CheckpointError(f"{folder / FORMAT}: {shortened(str(found))}; the format read here is torch_dist 1")


class _Builder:
    """Builds torch's classes from the records of one folder's metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder / METADATA)
        self.sizes: dict[str, int] = {}
        """Bytes of each file that was named so far."""
        self.parts = 0

    def metadata(self, root: Any) -> Metadata:
        """All of the metadata."""
        if not isinstance(root, Record) or root.kind not in ("Metadata", "MCoreMetadata"):
            raise self.wrong("its content is", root)
        fields = self.fields(root, root.kind)
        entries = {key: self.entry(key, value) for key, value in self.items(fields.get("state_dict_metadata"))}
        storage = dict(self.place(key, value) for key, value in self.items(fields.get("storage_data")))
        if missing := next((index for index in _parts(entries) if index not in storage), None):
            raise CheckpointError(f"{self.where}: does not say where {missing.fqn} is stored; restore it from a copy")
        return Metadata(entries, planner_data=None, storage_data=storage, storage_meta=StorageMeta())

    def entry(self, key: Any, value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
        """A tensor's shape, dtype and parts, or the presence of an object."""
        if isinstance(key, str) and isinstance(value, Record) and value.kind == "BytesStorageMetadata":
            if not _OBJECT_KEY.match(key):
                raise self.wrong("the name of an object is", key)
            return BytesStorageMetadata()
        if not isinstance(key, str):
            raise self.wrong("the name of a tensor is", key)
        fields = self.fields(value, "TensorStorageMetadata")
        size = self.extent(fields.get("size"))
        properties, chunks = fields.get("properties"), fields.get("chunks")
        if not isinstance(properties, Record) or properties.kind != "TensorProperties":
            raise self.wrong(f"{key}: its properties are", properties)
        dtype = properties.state[0] if isinstance(properties.state, tuple) and properties.state else None
        if not isinstance(dtype, torch.dtype):
            raise self.wrong(f"{key}: its dtype is", dtype)
        if not isinstance(chunks, list):
            raise self.wrong(f"{key}: its parts are", chunks)
        self.parts += len(chunks)
        if self.parts > _MOST_PARTS:
            raise CheckpointError(
                f"{self.where}: more than {_MOST_PARTS:,} parts, the limit here; is it the metadata of a checkpoint?"
            )
        made = [self.chunk(key, size, chunk) for chunk in chunks]
        if len({chunk.offsets for chunk in made}) != len(made):
            raise CheckpointError(f"{self.where}: {key} has two parts at the same offset; restore it from a copy")
        return TensorStorageMetadata(TensorProperties(dtype=dtype), size, made)

    def chunk(self, key: str, size: torch.Size, value: Any) -> ChunkStorageMetadata:
        """A part, checked to be within its tensor."""
        fields = self.fields(value, "ChunkStorageMetadata")
        offsets, sizes = self.extent(fields.get("offsets")), self.extent(fields.get("sizes"))
        fits = len(offsets) == len(sizes) == len(size)
        if not fits or any(offset + length > limit for offset, length, limit in zip(offsets, sizes, size, strict=True)):
            raise CheckpointError(
                f"{self.where}: {key} of shape {list(size)} has a part of shape {list(sizes)} at {list(offsets)}; "
                "restore it from a copy"
            )
        return ChunkStorageMetadata(offsets, sizes)

    def place(self, index: Any, value: Any) -> tuple[MetadataIndex, _StorageInfo]:
        """Where a part is stored, checked to be within a file of the folder."""
        part, fields = self.fields(index, "MetadataIndex"), self.fields(value, "_StorageInfo")
        name, offset = part.get("fqn"), part.get("offset")
        if not isinstance(name, str):
            raise self.wrong("the tensor of a part is", name)
        if fields.get("transform_descriptors"):
            raise CheckpointError(
                f"{self.where}: {name} is compressed by an extension of torch, which is not read; save the checkpoint "
                "again without it"
            )
        relative, start, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
        start, length = self.number(start), self.number(length)
        if not isinstance(relative, str):
            raise self.wrong("the name of a file is", relative)
        if start + length > (size := self.size_of(relative)):
            raise CheckpointError(
                f"{self.where}: {name} is stored at {start:,} to {start + length:,} of {relative}, which has {size:,} "
                "bytes; restore it from a copy"
            )
        return MetadataIndex(name, None if offset is None else self.extent(offset)), _StorageInfo(
            relative, start, length
        )

    def size_of(self, relative: str) -> int:
        """Size in bytes of a file that the metadata names."""
        if relative not in self.sizes:
            path = self.folder / relative
            if not relative or Path(relative).is_absolute() or ".." in Path(relative).parts or "\0" in relative:
                raise CheckpointError(
                    f"{self.where}: names the file {shortened(relative)!r}, outside its folder, which is not read; do "
                    "not use this checkpoint"
                )
            check_inside(self.folder, path, CheckpointError)
            try:
                status = path.stat()
            except OSError as problem:
                raise CheckpointError(
                    f"{self.folder}: {shortened(relative)} cannot be read ({problem.strerror}); restore it from a copy"
                ) from None
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a regular file; restore it from a copy")
            self.sizes[relative] = status.st_size
        return self.sizes[relative]

    def fields(self, value: Any, kind: str) -> dict[Any, Any]:
        """The fields of a record, checked to be of a kind."""
        if not isinstance(value, Record) or value.kind != kind or not isinstance(value.state, dict):
            raise self.wrong(f"instead of a {kind} there is", value)
        return value.state

    def items(self, value: Any) -> Iterator[tuple[Any, Any]]:
        """The items of a mapping."""
        if not isinstance(value, dict):
            raise self.wrong("instead of a mapping there is", value)
        yield from value.items()

    def extent(self, value: Any) -> torch.Size:
        """A shape or an offset, of at most _MOST_DIMENSIONS dimensions."""
        if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
            raise self.wrong("a shape is", value)
        size = torch.Size([self.number(length) for length in value])
        if math.prod(size) > _LARGEST:
            raise self.wrong("a shape is", value)
        return size

    def number(self, value: Any) -> int:
        """A length or an offset."""
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise self.wrong("a size is", value)
        return value

    def wrong(self, description: str, value: Any) -> CheckpointError:
        """The error for a value that metadata cannot have."""
        plain = isinstance(value, str | int | float | torch.dtype)
        kind = f"a {value.kind}" if isinstance(value, Record) else type(value).__name__
        shown = shortened(repr(value), 80) if plain else kind
        return CheckpointError(f"{self.where}: damaged: {description} {shown}; restore it from a copy")


def _parts(entries: dict[str, TensorStorageMetadata | BytesStorageMetadata]) -> Iterator[MetadataIndex]:
    """Everything that must be stored somewhere."""
    for key, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata):
            yield from (MetadataIndex(key, chunk.offsets) for chunk in entry.chunks)
        else:
            yield MetadataIndex(key)
