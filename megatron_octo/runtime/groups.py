"""Process groups: this process's place among the ranks, and Megatron's groups over them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from megatron_octo.errors import OctoError, RuntimeSetupError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.failures import rank_files
from megatron_octo.runtime.loopback import bound_store, is_loopback, stay_on_loopback

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""The last resort: `HangWatch` ends a rank that hangs long before."""
JOIN_TIMEOUT = timedelta(minutes=10)
"""How long the ranks wait for one another at the start."""


@dataclass(frozen=True)
class Rank:
    """This process among all."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """The rank that prints and writes single files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> "Rank":
        """Read torchrun's variables, else SLURM's, else a single process."""
        if "RANK" in os.environ:
            return cls(_number("RANK"), _number("LOCAL_RANK", 0), _number("WORLD_SIZE"))
        if "SLURM_PROCID" in os.environ and _number("SLURM_NTASKS", 1) > 1:
            return cls(_number("SLURM_PROCID"), _number("SLURM_LOCALID", 0), _number("SLURM_NTASKS"))
        return cls(0, 0, 1)


def _number(variable: str, default: int | None = None) -> int:
    text = os.environ.get(variable, "" if default is None else str(default))
    if not text.isdigit() or len(text) > 9:
        raise RuntimeSetupError(f"${variable} = {text!r}: not a number of ranks; start ranks with torchrun or srun")
    return int(text)


def data_parallel_size(layout: Parallel, world_size: int) -> int:
    """Data-parallel ranks that a world leaves after the model's own.

    Raises:
        RuntimeSetupError: the world is no multiple of the model's ranks, or not what the recipe asks.
    """
    if world_size % layout.model_ranks:
        raise RuntimeSetupError(
            f"{world_size} ranks cannot hold tensor {layout.tensor} x pipeline {layout.pipeline} x context "
            f"{layout.context} = {layout.model_ranks}; start a multiple of {layout.model_ranks}"
        )
    data = world_size // layout.model_ranks
    if layout.data not in ("auto", data):
        raise RuntimeSetupError(
            f"parallel.data = {layout.data}, but {world_size} ranks leave {data}; "
            f"start {layout.model_ranks * int(layout.data)} ranks or set parallel.data=auto"
        )
    return data


def start_process_groups(rank: Rank, layout: Parallel, device: torch.device, seed: int) -> None:
    """Join the world and make Megatron's groups; seed this rank as Megatron does.

    Raises:
        RuntimeSetupError: see `_store`; and ranks that cannot meet.
    """
    from megatron.core import parallel_state, tensor_parallel

    options: dict[str, Any] = {"backend": "gloo", "timeout": COLLECTIVE_TIMEOUT}
    if device.type == "cuda":
        options["backend"] = "cpu:gloo,cuda:nccl"  # gloo too: asynchronous checkpoints agree without the GPU
        options["device_id"] = device
    options["store"] = _store(rank)
    torch.distributed.init_process_group(rank=rank.rank, world_size=rank.world_size, **options)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def _store(rank: Rank) -> Any:
    """Where the ranks meet; None leaves it to torchrun, whose agent listens already.

    On one machine they meet in a file. Elsewhere the first rank listens at MASTER_ADDR, on that interface and no other.

    Raises:
        RuntimeSetupError: no address, or one that the first rank cannot listen at.
    """
    if (files := rank_files(rank.rank)) is not None:
        return torch.distributed.FileStore(str(files.folder / "store"), rank.world_size)  # type: ignore[attr-defined]
    host = os.environ.get("MASTER_ADDR")
    if host is None:
        if rank.world_size > 1:
            raise RuntimeSetupError(
                f"{rank.world_size} ranks but MASTER_ADDR is not set; start them with torchrun, or export "
                "MASTER_ADDR and MASTER_PORT in the SLURM script"
            )
        stay_on_loopback()
        return torch.distributed.HashStore()  # type: ignore[attr-defined]
    if is_loopback(host):
        stay_on_loopback()
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise RuntimeSetupError(f"MASTER_PORT = {port!r}: not a port; export a free one, the same on all ranks")
    return bound_store(host, int(port), rank.world_size, is_master=rank.is_first, timeout=JOIN_TIMEOUT)


def from_first_rank(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; an OctoError that it raises is raised on all. Every rank calls it.

    For whatever is read from a shared file system, where ranks may see different things for a while.
    """
    box: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = make()
        except OctoError as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    value: T = box[0]
    return value


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether it is so on any rank. Every rank calls it."""
    count = torch.tensor([float(value)], device=device)
    torch.distributed.all_reduce(count)
    return bool(count.item() > 0)


def stop_process_groups() -> None:
    """Leave the world; safe to call when never joined."""
    from megatron.core import parallel_state

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
