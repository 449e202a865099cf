"""Process groups: joining the world, Megatron's groups over its ranks, and small agreements between ranks."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any, TypeVar

import torch

from megatron_octo.errors import OctoError, RuntimeSetupError, explain_os_error
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
        RuntimeSetupError: see `join_world` and `make_model_groups`.
    """
    join_world(rank, device)
    make_model_groups(layout, seed)


def join_world(rank: Rank, device: torch.device) -> None:
    """Join torch's default process group.

    Raises:
        RuntimeSetupError: see `_store`; or the ranks cannot meet.
    """
    options: dict[str, Any] = {"backend": "gloo", "timeout": COLLECTIVE_TIMEOUT}
    if device.type == "cuda":
        options["backend"] = "cpu:gloo,cuda:nccl"  # gloo too: asynchronous checkpoints coordinate without the GPU
        options["device_id"] = device
    options["store"] = _store(rank)
    torch.distributed.init_process_group(rank=rank.rank, world_size=rank.world_size, **options)


def make_model_groups(layout: Parallel, seed: int) -> None:
    """Make Megatron's groups for a layout, and seed this rank as Megatron does. Every rank of the world calls it.

    Raises:
        RuntimeSetupError: the world does not fit the layout.
    """
    from megatron.core import parallel_state, tensor_parallel

    data_parallel_size(layout, torch.distributed.get_world_size())
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


def from_first_rank(make: Callable[[], T], on_wait: Callable[[], None] | None = None) -> T:
    """The result of `make` on rank 0, on every rank. An error on rank 0 ends all of them. Every rank calls it.

    For anything read from a shared file system, where ranks may see different states for a while.

    Args:
        on_wait: for work that may take long; see `run_on_all_ranks`.

    Raises:
        OctoError: rank 0's own. Any other exception is raised on rank 0, and the others raise a RuntimeSetupError.
    """
    is_first = torch.distributed.get_rank() == 0
    if on_wait is not None:
        made = run_on_all_ranks(lambda: _outcome(make) if is_first else (None, None), on_wait)
    else:
        made = _outcome(make) if is_first else (None, None)
    value, error = made
    shown = error if error is None or isinstance(error, OctoError) else RuntimeSetupError(f"rank 0 failed: {error!r}")
    box: list[Any] = [value, shown]
    torch.distributed.broadcast_object_list(box, src=0)
    if error is not None:
        raise error
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def _outcome(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except OSError as error:
        message = explain_os_error(error)
        return None, error if message is None else RuntimeSetupError(message)
    except Exception as error:
        return None, error


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


def stop_model_groups() -> None:
    """Destroy Megatron's groups, and keep the world for another layout. Every rank of the world calls it."""
    from megatron.core import parallel_state

    # Megatron only forgets its groups, and their communicators would hold their memory
    for group in parallel_state._global_process_group_list or []:
        if group in torch.distributed.distributed_c10d._world.pg_map:
            torch.distributed.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def stop_process_groups() -> None:
    """Leave the world. Safe to call without having joined."""
    from megatron.core import parallel_state

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
