"""Which device a process works on. The CPU runtime is switched on here and nowhere else."""

import os

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime import cpu


def setup_device(local_rank: int = 0, announce: bool = True) -> torch.device:
    """Choose and prepare this process's device: its GPU, or the CPU with `torch.cuda` answered for.

    Args:
        local_rank: index of this process on its machine, which is the index of its GPU.
        announce: say once that the CPU runtime is on (rank 0 does).

    Raises:
        RuntimeSetupError: fewer GPUs than local ranks, or $OCTO_DEVICE=cuda with none.
    """
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise RuntimeSetupError(f"local rank {local_rank} has no GPU: this machine has {count}; start fewer ranks")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if os.environ.get("OCTO_DEVICE") == "cuda":
        raise RuntimeSetupError("OCTO_DEVICE=cuda, but torch finds no CUDA device; unset it or mend the driver")
    if not cpu.is_installed():
        cpu.install_cpu_runtime()
        if announce:
            print(f"No CUDA device: running on the CPU ({torch.get_num_threads()} threads a rank).", flush=True)
    return torch.device("cpu")


def on_cpu() -> bool:
    """Whether this process runs on the CPU runtime."""
    return cpu.is_installed()
