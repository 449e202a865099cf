"""Starting a module as ranks on this machine: how many, and with which environment."""

import os
import sys
from collections.abc import Sequence

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.groups import data_parallel_size
from megatron_octo.runtime.local_ranks import run_as_local_ranks


def ranks_on_this_machine(layout: Parallel) -> int:
    """The number of ranks to start here: the layout's, or with `data: auto` as many replicas as the GPUs hold.

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


def run_module_as_ranks(module: str, arguments: Sequence[str], world_size: int) -> int:
    """Run `python -m module` as `world_size` ranks on this machine. Returns the exit status.

    Ranks print where this process prints. They share its cores unless OMP_NUM_THREADS is set.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // world_size)))
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # Megatron's overlap of collectives relies on it
    return run_as_local_ranks([sys.executable, "-m", module, *arguments], world_size)
