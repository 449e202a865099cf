"""Process groups: joining the world, Megatron's groups over its ranks, and small agreements between ranks."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

import torch

from megatron_octo.errors import OctoError, RuntimeSetupError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.failures import rank_files
from megatron_octo.runtime.loopback import bound_store, is_loopback, stay_on_loopback
from megatron_octo.runtime.rank import Rank, read_port

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""A last resort: `HangWatch` ends a hanging rank long before."""
_SIGN_OF_LIFE_SECONDS = 5.0
JOIN_TIMEOUT = timedelta(minutes=10)
"""How long the ranks wait for each other at the start."""


def data_parallel_size(layout: Parallel, world_size: int) -> int:
    """The data-parallel size of a world.

    Raises:
        RuntimeSetupError: the world size is not a multiple of the ranks of one model, or not what the recipe asks for.
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
    """Join the world, make Megatron's groups, and seed this rank as Megatron does.

    Raises:
        RuntimeSetupError: see `_store`; or the ranks cannot meet.
    """
    from megatron.core import parallel_state, tensor_parallel

    options: dict[str, Any] = {"backend": "gloo", "timeout": COLLECTIVE_TIMEOUT}
    if device.type == "cuda":
        options["backend"] = "cpu:gloo,cuda:nccl"  # gloo too: asynchronous checkpoints coordinate without the GPU
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
    """The store where the ranks meet. None: torchrun's agent already runs one.

    On one machine it is a file. Otherwise the first rank listens at MASTER_ADDR, on that interface and no other.

    Raises:
        RuntimeSetupError: there is no address, or the first rank cannot listen at it.
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
    port = read_port("MASTER_PORT")
    return bound_store(host, port, rank.world_size, is_master=rank.is_first, timeout=JOIN_TIMEOUT)


def from_first_rank(make: Callable[[], T]) -> T:
    """The result of `make` on rank 0, on every rank. An OctoError on rank 0 is raised on all. Every rank calls it.

    For anything read from a shared file system, where ranks may see different states for a while.
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


def run_on_all_ranks(work: Callable[[], T], on_wait: Callable[[], None]) -> T:
    """Do each rank's own long work. An OctoError on one rank is raised on all. Every rank calls it.

    While any rank is working, all ranks exchange a sign of life every few seconds, so that none waits in a collective
    until it times out. `on_wait` is called each time, to tell a watchdog that nothing hangs.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while any_rank(not _is_done(future)):
            on_wait()
    error = future.exception()
    problems: list[OctoError | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, error if isinstance(error, OctoError) else None)
    for problem in problems:
        if problem is not None:
            raise problem
    return future.result()


def _is_done(future: "Future[Any]") -> bool:
    wait([future], timeout=_SIGN_OF_LIFE_SECONDS)
    return future.done()


def any_rank(value: bool) -> bool:
    """Whether `value` is true on any rank. Every rank calls it."""
    count = torch.tensor([float(value)])  # on the CPU, where gloo reduces it without NCCL
    torch.distributed.all_reduce(count)
    return bool(count.item() > 0)


def stop_process_groups() -> None:
    """Leave the world. Safe to call without having joined."""
    from megatron.core import parallel_state

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
