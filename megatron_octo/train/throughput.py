"""Tokens per second, and the share of the hardware's peak that they use (MFU)."""

import time

import torch

_PEAK_BF16 = {  # dense BF16 FLOP/s from NVIDIA's data sheets
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of all ranks, the denominator of MFU; None for an unknown GPU.

    A GPU has the dense BF16 rate of its data sheet, under FP8 too, so the MFU of an FP8 run can exceed 1. A CPU has the
    rate of an fp32 matrix product, measured now on all ranks at once.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        rate = next((peak for key, peak in _PEAK_BF16.items() if key in name), None)
    else:
        rate = _measured_matmul_rate()
    total = torch.tensor([rate or 0.0], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return None if rate is None else float(total)


def _measured_matmul_rate(size: int = 768, seconds: float = 0.3) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.distributed.barrier()
    for _ in range(3):
        a @ b
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


class Stopwatch:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds

    def restart(self) -> None:
        """Exclude the time since the last lap (a checkpoint, a validation)."""
        self.last = time.perf_counter()
