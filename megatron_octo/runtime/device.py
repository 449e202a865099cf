"""The device that a process uses. The CPU runtime is installed here and nowhere else."""

import os

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime import cpu


def setup_device(local_rank: int = 0, announce: bool = True) -> torch.device:
    """Choose and prepare this process's device: its GPU, or the CPU with the CPU runtime.

    Args:
        local_rank: index of this process on its machine, and of its GPU.
        announce: print that the process runs on the CPU (only rank 0 does).

    Raises:
        RuntimeSetupError: fewer GPUs than local ranks, or $OCTO_DEVICE=cuda without a GPU.
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise RuntimeSetupError(f"local rank {local_rank} has no GPU: this machine has {count}; start fewer ranks")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if os.environ.get("OCTO_DEVICE") == "cuda":
        raise RuntimeSetupError("OCTO_DEVICE=cuda, but torch finds no CUDA device; unset it or repair the driver")
    if not cpu.is_installed():
        cpu.install_cpu_runtime()
        if announce:
            print(f"No CUDA device: running on the CPU ({torch.get_num_threads()} threads per rank).", flush=True)
    return torch.device("cpu")


def on_cpu() -> bool:
    """Whether this process runs on the CPU runtime."""
    return cpu.is_installed()
