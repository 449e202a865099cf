"""Merges the tokens of all tasks into one `.bin`/`.idx` pair for each split, and reads it back with Megatron-Core."""

import hashlib
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_octo.data.limits import Limits
from megatron_octo.data.manifest import Split, SplitName, TokenFile
from megatron_octo.errors import DataError

# Megatron-Core's codes (megatron.core.datasets.indexed_dataset.DType)
_DTYPE_CODES = {"uint16": 8, "int32": 4}
_BLOCK_DOCUMENTS = 200_000


@dataclass(frozen=True)
class Plan:
    """The documents of each task that go into each split, in the order of the tasks."""

    ranks: int
    """Number of tasks that hold the pool. Later tasks are beyond the source's limits."""
    train: list[npt.NDArray[np.bool_]]
    """For each task, whether each of its documents is in the training split."""
    validation: list[npt.NDArray[np.bool_]]
    lengths: list[npt.NDArray[np.int32]]
    """For each task, the tokens of each of its documents."""
    documents: int
    """Documents in the pool."""
    validation_duplicates: int


def plan_splits(folder: Path, tasks: int, limits: Limits) -> Plan:
    """Choose the documents of both splits.

    Validation takes the `limits.validation` different texts with the smallest hashes, so the choice depends only on the
    texts. Every other document with one of these texts is left out of training.
    """
    lengths: list[npt.NDArray[np.int32]] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    size: int | None = None
    for rank in range(tasks):
        lengths.append(np.load(folder / f"{rank:05d}.lengths.npy"))
        hashes.append(np.load(folder / f"{rank:05d}.hashes.npy"))
        if limits.any and (size := limits.pool_size(np.concatenate(lengths))) is not None:
            break
    all_hashes = np.concatenate(hashes)[:size]
    pool = len(all_hashes)
    different, first = np.unique(all_hashes, return_index=True)
    chosen = different[: limits.validation]
    is_validation = np.zeros(pool, dtype=bool)
    is_validation[first[: limits.validation]] = True
    is_train = ~np.isin(all_hashes, chosen)
    duplicates = int(pool - is_train.sum() - is_validation.sum())
    if limits.tokens is not None:
        kept = np.concatenate(lengths)[:pool] * is_train
        # whole documents up to the one that reaches the limit
        is_train[int(np.searchsorted(np.cumsum(kept, dtype=np.int64), limits.tokens)) + 1 :] = False
    beyond = sum(map(len, lengths)) - pool
    cuts = np.cumsum([len(part) for part in lengths])[:-1]
    return Plan(
        ranks=len(lengths),
        train=np.split(np.pad(is_train, (0, beyond)), cuts),
        validation=np.split(np.pad(is_validation, (0, beyond)), cuts),
        lengths=lengths,
        documents=pool,
        validation_duplicates=duplicates,
    )


def write_split(folder: Path, plan: Plan, split: SplitName, dtype: str, into: Path) -> Split:
    """Write `<split>.bin` and `.idx` from the tasks' files, hashing as it writes."""
    masks = plan.train if split == "train" else plan.validation
    lengths = np.concatenate([part[mask] for part, mask in zip(plan.lengths, masks, strict=True)])
    files = []
    with open(into / f"{split}.bin", "wb") as file:
        out = _HashingFile(file)
        for rank, (part, mask) in enumerate(zip(plan.lengths, masks, strict=True)):
            if mask.any():
                for block in _kept_tokens(folder / f"{rank:05d}_tokens.bin", part, mask, dtype):
                    out.write(block)
        files.append(out.record(f"{split}.bin"))
    with open(into / f"{split}.idx", "wb") as file:
        out = _HashingFile(file)
        for block in _index(lengths, dtype):
            out.write(block)
        files.append(out.record(f"{split}.idx"))
    return Split(documents=len(lengths), tokens=int(lengths.sum(dtype=np.int64)), files=tuple(files))


def check_readable(prefix: Path, split: Split, vocabulary: int, end_of_document: int) -> None:
    """Open a split with Megatron-Core, and compare it with what was written.

    Raises:
        DataError: the number of documents or tokens differs, a document does not end with the end-of-document token, or
            an id is outside the vocabulary.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Transformer Engine and Apex are not needed to read
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    lengths = np.asarray(data.sequence_lengths)
    found = (len(data), len(data.document_indices) - 1, int(lengths.sum(dtype=np.int64)))
    if found != (split.documents, split.documents, split.tokens):
        raise DataError(
            f"{prefix}: Megatron-Core reads {found[0]} sequences, {found[1]} documents and {found[2]} tokens, but "
            f"{split.documents} documents and {split.tokens} tokens were written; is the disk full or failing?"
        )
    tokens = np.memmap(f"{prefix}.bin", dtype=data.index.dtype, mode="r")
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    highest = max(int(tokens[a : a + (1 << 24)].max()) for a in range(0, len(tokens), 1 << 24))
    if highest >= vocabulary or not np.all(tokens[ends] == end_of_document):
        raise DataError(f"{prefix}: what was read back is not what was written; is the disk full or failing?")


def _kept_tokens(
    path: Path, lengths: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], dtype: str
) -> Iterator[bytes]:
    tokens = np.memmap(path, dtype=dtype, mode="r")
    ends = np.cumsum(lengths, dtype=np.int64)
    for start in range(0, len(lengths), _BLOCK_DOCUMENTS):
        stop = min(start + _BLOCK_DOCUMENTS, len(lengths))
        block = tokens[int(ends[start]) - int(lengths[start]) : int(ends[stop - 1])]
        kept = mask[start:stop]
        yield (block if kept.all() else block[np.repeat(kept, lengths[start:stop])]).tobytes()


def _index(lengths: npt.NDArray[np.int32], dtype: str) -> Iterator[bytes]:
    """The `.idx` with a sequence per document: header, lengths (int32), byte offsets (int64), document bounds (int64).

    Layout: megatron.core.datasets.indexed_dataset._IndexWriter.
    """
    offsets = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= np.dtype(dtype).itemsize
    yield b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, _DTYPE_CODES[dtype], len(lengths), len(lengths) + 1)
    yield lengths.astype(np.int32).tobytes()
    yield offsets.tobytes()
    yield np.arange(len(lengths) + 1, dtype=np.int64).tobytes()


class _HashingFile:
    """Writes to a file, and hashes the bytes that it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._bytes = file, hashlib.sha256(), 0

    def write(self, block: bytes) -> None:
        self._file.write(block)
        self._digest.update(block)
        self._bytes += len(block)

    def record(self, path: str) -> TokenFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        return TokenFile(path=path, bytes=self._bytes, sha256=self._digest.hexdigest())
