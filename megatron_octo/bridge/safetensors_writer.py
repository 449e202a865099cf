"""Sharded safetensors, written one tensor after another.

The safetensors library writes a file from tensors that are all in memory, so that a shard of the usual 5 GB would need
5 GB. The format is eight bytes of length, a JSON header, and the tensors' bytes. Every file is read back with the
library.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from megatron_octo.bridge.hf_folder import INDEX, SINGLE

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SHARD_BYTES = 5 * 10**9
"""Largest shard; the default of transformers 4."""


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class ShardedWriter:
    """Writes the planned tensors, in order, into shards, and an index if there is more than one shard."""

    def __init__(self, folder: Path, tensors: Sequence[Planned], shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shards = folder, _shards(tensors, shard_bytes)
        self._order = [(planned, number) for number, shard in enumerate(self.shards) for planned in shard]
        self._done = 0
        self._file: BinaryIO | None = None

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next planned tensor."""
        planned, shard = self._order[self._done]
        if (name, tuple(tensor.shape), tensor.dtype) != (planned.name, planned.shape, planned.dtype):
            raise AssertionError(f"{name} of {list(tensor.shape)} {tensor.dtype}, but {planned} is next")
        if self._file is None:
            self._file = open(self.folder / self._name(shard), "wb")  # noqa: SIM115 (closed with its last tensor)
            self._file.write(_header(self.shards[shard]))
        # the bytes in memory: every machine that this runs on is little-endian, as the format is
        self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        self._done += 1
        if self._done == len(self._order) or self._order[self._done][1] != shard:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write the index. Every planned tensor must have been added."""
        if self._done != len(self._order):
            raise AssertionError(f"{self._done} of {len(self._order)} tensors written")
        if len(self.shards) > 1:
            weight_map = {planned.name: self._name(shard) for planned, shard in self._order}
            total = sum(planned.bytes for planned, _ in self._order)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _name(self, shard: int) -> str:
        count = len(self.shards)
        return SINGLE if count == 1 else f"model-{shard + 1:05d}-of-{count:05d}.safetensors"


def _shards(tensors: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    for planned in tensors:
        held = sum(other.bytes for other in shards[-1])
        if shards[-1] and held + planned.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(planned)
    return shards


def _header(shard: Sequence[Planned]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for planned in shard:
        offsets = [start, start + planned.bytes]
        header[planned.name] = {"dtype": _NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": offsets}
        start += planned.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors must start at a multiple of eight to be memory-mapped
    return len(text).to_bytes(8, "little") + text
