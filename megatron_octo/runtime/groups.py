"""Process groups: this process's place among the ranks, and Megatron's groups over them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from megatron_octo.errors import OctoError, RuntimeSetupError
from megatron_octo.recipe import Parallel

T = TypeVar("T")


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
        env = os.environ
        if "RANK" in env:
            return cls(int(env["RANK"]), int(env.get("LOCAL_RANK", 0)), int(env["WORLD_SIZE"]))
        if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1:
            return cls(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", 0)), int(env["SLURM_NTASKS"]))
        return cls(0, 0, 1)


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
    """Join the world and make Megatron's groups; seed this rank as Megatron does."""
    from megatron.core import parallel_state, tensor_parallel

    options: dict[str, Any] = {"backend": "gloo", "timeout": timedelta(minutes=30)}
    if device.type == "cuda":
        options["backend"] = "cpu:gloo,cuda:nccl"  # gloo too: asynchronous checkpoints agree without the GPU
        options["device_id"] = device
    if "MASTER_ADDR" not in os.environ:
        if rank.world_size > 1:
            raise RuntimeSetupError(
                f"{rank.world_size} ranks but MASTER_ADDR is not set; start them with torchrun, or export "
                "MASTER_ADDR and MASTER_PORT in the SLURM script"
            )
        options["store"] = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group(rank=rank.rank, world_size=rank.world_size, **options)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


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


def stop_process_groups() -> None:
    """Leave the world; safe to call when never joined."""
    from megatron.core import parallel_state

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
