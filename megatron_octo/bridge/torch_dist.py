"""Megatron's distributed checkpoints, tensor by tensor: no model, no process group, no whole model in memory.

A checkpoint (format torch_dist) is torch.distributed.checkpoint's own, written and read here through its storage
classes, plus Megatron's `metadata.json` and `common.pt`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_octo.errors import CheckpointError

_COMMON = "common.pt"


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, and how to get it when its turn comes to be written."""

    key: str
    size: tuple[int, ...]
    """Of the whole tensor; the layers of the decoder are its first dimension."""
    offsets: tuple[int, ...]
    extent: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.extent).numel() * self.dtype.itemsize


def write_torch_dist(folder: Path, ranks: Iterable[list[Chunk]], on_bytes: Callable[[int], None] | None = None) -> None:
    """Write a checkpoint of model weights into an existing folder, one rank's chunks after another's.

    Args:
        ranks: the chunks of rank 0, of rank 1, ...; together they cover every tensor once.
        on_bytes: hears of every chunk's size as it is read (for a progress bar).
    """
    chunks: dict[MetadataIndex, Chunk] = {}
    plans = []
    for rank in ranks:
        items = [_write_item(chunk) for chunk in rank]
        chunks |= {item.index: chunk for item, chunk in zip(items, rank, strict=True)}
        plans.append(SavePlan(items))
    # one thread: with more, more than one chunk is in memory at a time. fsync is left to the caller, once for all
    writer = FileSystemWriter(folder, thread_count=1, sync_files=False, overwrite=False)
    writer.set_up_storage_writer(is_coordinator=True)
    # index hints would make an index another key than the one the chunk was noted under
    plans, metadata = create_default_global_save_plan(plans, rewrite_index_hints=False)
    planner = _ChunkPlanner(chunks, on_bytes)
    results = [
        writer.write_data(writer.prepare_local_plan(plan), planner).value()
        for plan in writer.prepare_global_plan(plans)
        if plan.items
    ]
    writer.finish(metadata, results)
    torch.save({"content_metadata": {}}, folder / _COMMON)
    save_config(CheckpointingConfig("torch_dist"), str(folder))


def _write_item(chunk: Chunk) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(chunk.key, torch.Size(chunk.offsets)),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.extent)),
            properties=TensorProperties(dtype=chunk.dtype),
            size=torch.Size(chunk.size),
        ),
    )


class _ChunkPlanner(DefaultSavePlanner):
    """Hands out each chunk when the writer comes to it, and not before."""

    def __init__(self, chunks: dict[MetadataIndex, Chunk], on_bytes: Callable[[int], None] | None) -> None:
        super().__init__()
        self.chunks, self.on_bytes = chunks, on_bytes

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        chunk = self.chunks[write_item.index]
        tensor = chunk.read()
        if tensor.numel() != torch.Size(chunk.extent).numel() or tensor.dtype != chunk.dtype:
            raise AssertionError(f"{chunk}: got {tensor.dtype} of {list(tensor.shape)}")
        if self.on_bytes is not None:
            self.on_bytes(chunk.bytes)
        return tensor.reshape(chunk.extent)


class TorchDistReader:
    """The tensors of a checkpoint of any layout."""

    def __init__(self, folder: Path) -> None:
        """Read what there is, and no tensor.

        Raises:
            CheckpointError: not a torch_dist checkpoint.
        """
        self.folder = folder
        self._reader = FileSystemReader(folder)
        try:
            # Megatron's saves name classes of its own in the metadata, which importing megatron above provides
            self._metadata = self._reader.read_metadata()
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder}: no .metadata, so it is not a torch_dist checkpoint; give the step-... folder itself"
            ) from None
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    @property
    def keys(self) -> set[str]:
        """Names of the model's tensors: those of the optimizer are left out."""
        return {key for key in self._tensors if not key.startswith("optimizer.")}

    def size(self, key: str) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of a tensor."""
        dtype: torch.dtype = self._tensors[key].properties.dtype
        return dtype

    def read(self, key: str, layer: int | None = None, rows: int | None = None) -> torch.Tensor:
        """A tensor, put together from its parts.

        Args:
            layer: of a tensor of the decoder, the one layer that is wanted; the result has its first dimension gone.
            rows: only so many rows from the start (a vocabulary without its padding).
        """
        entry = self._tensors[key]
        offsets, extent = [0] * len(entry.size), list(entry.size)
        if layer is not None:
            offsets[0], extent[0] = layer, 1
        if rows is not None:
            extent[0 if layer is None else 1] = rows
        target = torch.empty(extent, dtype=self.dtype(key))
        wanted = ChunkStorageMetadata(torch.Size(offsets), torch.Size(extent))
        items = create_read_items_for_chunk_list(key, entry, [wanted])
        covered = sum(item.lengths.numel() for item in items)
        if covered != target.numel():
            raise CheckpointError(
                f"{self.folder}: {key} has {covered} of the {target.numel()} values that {list(entry.size)} asks for; "
                "restore it from a copy"
            )
        self._reader.read_data(LoadPlan(items), _TargetPlanner(target)).value()
        return target if layer is None else target[0]


class _TargetPlanner(DefaultLoadPlanner):
    """Puts what is read into one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        view = self.target
        for dim, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            view = view.narrow(dim, start, length)
        return view

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        """The view was written in place."""


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder looks like a torch_dist checkpoint."""
    return (folder / ".metadata").is_file()
