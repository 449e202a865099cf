"""Writes Megatron's distributed checkpoints, tensor by tensor: without a model or a process group.

A checkpoint of the format torch_dist is one of torch.distributed.checkpoint, written here through its storage classes,
plus Megatron's `metadata.json` and `common.pt`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_octo.runtime.checkpoint_objects import COMMON


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, which is read only when it is written."""

    key: str
    size: tuple[int, ...]
    """Shape of the whole tensor; the first dimension of a decoder tensor is the layer."""
    offsets: tuple[int, ...]
    extent: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.extent).numel() * self.dtype.itemsize


def write_torch_dist(folder: Path, ranks: Iterable[list[Chunk]], on_bytes: Callable[[int], None] | None = None) -> None:
    """Write a checkpoint of model weights into an existing folder, rank after rank.

    Args:
        ranks: the chunks of each rank; together they cover every value of every tensor once.
        on_bytes: called with the size of every chunk as it is read (for a progress bar).
    """
    ranks = list(ranks)
    plans = [SavePlan([_write_item(chunk) for chunk in rank]) for rank in ranks]
    # one thread, so that chunks are asked for in order. The caller flushes all files at once
    writer = FileSystemWriter(folder, thread_count=1, sync_files=False, overwrite=False)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, metadata = create_default_global_save_plan(plans, rewrite_index_hints=False)
    planner = _ChunkPlanner([chunk for rank in ranks for chunk in rank], on_bytes)
    results = [
        writer.write_data(writer.prepare_local_plan(plan), planner).value()
        for plan in writer.prepare_global_plan(plans)
        if plan.items
    ]
    writer.finish(metadata, results)
    torch.save({"content_metadata": {}}, folder / COMMON)
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
    """Reads each chunk when the writer asks for it, and not before."""

    def __init__(self, chunks: Sequence[Chunk], on_bytes: Callable[[int], None] | None) -> None:
        super().__init__()
        self.on_bytes = on_bytes
        self.chunks = iter(chunks)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        chunk = next(self.chunks)
        if (chunk.key, torch.Size(chunk.offsets)) != (write_item.index.fqn, write_item.index.offset):
            raise AssertionError(f"the writer asks for {write_item.index}, but {chunk} is next")
        tensor = chunk.read()
        if tensor.numel() != torch.Size(chunk.extent).numel() or tensor.dtype != chunk.dtype:
            raise AssertionError(f"{chunk}: got {tensor.dtype} of {list(tensor.shape)}")
        if self.on_bytes is not None:
            self.on_bytes(chunk.bytes)
        return tensor.reshape(chunk.extent)
