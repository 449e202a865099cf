"""Start the ranks of a stage: torchrun when alone, this process itself where ranks are there already."""

import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.groups import data_parallel_size

SAVE_SECONDS = 1800
"""How long ranks that were asked to stop may take over their step and their checkpoint."""


def is_rank_already() -> bool:
    """Whether torchrun or SLURM started this process as one rank of several."""
    return "RANK" in os.environ or ("SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1)


def ranks_on_this_machine(layout: Parallel) -> int:
    """How many ranks to start here: the layout's, or with `data: auto` as many replicas as there are GPUs for.

    Raises:
        RuntimeSetupError: fewer GPUs than one model needs.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if layout.data != "auto":
        world = layout.model_ranks * layout.data
    else:
        world = max(layout.model_ranks, gpus // layout.model_ranks * layout.model_ranks)
    if 0 < gpus < world:
        raise RuntimeSetupError(
            f"the layout needs {world} ranks, and this machine has {gpus} GPUs; submit it to a cluster "
            "(docs/cluster.md), or lower parallel.tensor, pipeline, context or data"
        )
    data_parallel_size(layout, world)
    return world


def _patience() -> dict[str, Any]:
    """Let asked-to-stop ranks finish their step and save: torchrun kills after 30 s unless told otherwise."""
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # torch 2.11 may not have them
    wanted = {"shutdown_timeout": SAVE_SECONDS, "signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    return {key: value for key, value in wanted.items() if key in known}


def run_module_as_ranks(module: str, arguments: Sequence[str], world_size: int) -> int:
    """Run `python -m module` as `world_size` ranks on this machine; returns the exit status.

    The ranks are torchrun's (its elastic agent, called here so that its own traceback does not bury a rank's
    message). They print where this process prints; threads are shared out unless OMP_NUM_THREADS is set.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // world_size)))
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's overlap of collectives relies on it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
        **_patience(),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        # a rank killed because another failed has a negative status: the first to fail tells the reason
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except (SignalException, KeyboardInterrupt) as error:
        return 128 + int(getattr(error, "sigval", signal.SIGINT))
    return 0
