"""Time, peak extra memory and error of one competitor."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from megatron_octo.ops.bench.competitors import Competitor, Outputs

ENTROPY_WEIGHT = 0.01
"""Of the entropy beside the log-prob in what is differentiated: both losses at once, as PPO with an entropy bonus."""


@dataclass(frozen=True)
class Measured:
    """What a competitor took."""

    name: str
    is_ours: bool
    forward_ms: float
    both_ms: float
    """Forward and backward; medians."""
    extra_bytes: int
    """Peak over forward and backward, beyond what was there before: gradients included."""
    scratch_bytes: int
    """The same without the gradients of the inputs, which every competitor has to hand out."""
    log_prob_error: float
    """Largest absolute difference to fp64."""
    entropy_error: float | None


def loss_of(outputs: Outputs) -> torch.Tensor:
    """What is differentiated."""
    log_probs, entropy = outputs
    loss = log_probs.sum()
    return loss if entropy is None else loss + ENTROPY_WEIGHT * entropy.sum()


def measure(
    competitors: Sequence[Competitor],
    make: Callable[[], tuple[torch.Tensor, ...]],
    reference: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    rounds: int,
    on_round: Callable[[], None],
) -> list[Measured]:
    """Measure all, in turns, on inputs that are the same bits.

    Args:
        make: inputs that require gradients, and the targets last.
        reference: log-probs and entropy in fp64 from those inputs.
    """
    forward: dict[str, list[float]] = {c.name: [] for c in competitors}
    both: dict[str, list[float]] = {c.name: [] for c in competitors}
    extra, errors = {}, {}
    inputs = make()
    gradients = sum(x.nbytes for x in inputs if x.requires_grad)
    exact = reference(*inputs)
    del inputs
    for c in competitors:  # compiles, fills caches, and is measured for memory and error
        with torch.no_grad():
            log_probs, entropy = c.run(*make())
        is_mean = bool(log_probs.stride(0) == 0)  # a competitor that gives the mean alone
        wanted = exact[0].mean().expand_as(exact[0]) if is_mean else exact[0]
        entropy_error = None if entropy is None else float((entropy.double() - exact[1]).abs().max())
        errors[c.name] = (float((log_probs.double() - wanted).abs().max()), entropy_error)
        _backward(c, make())
        inputs = make()
        extra[c.name] = peak_extra_bytes(partial(_backward, c, inputs))
        on_round()
    for _ in range(rounds):
        for c in competitors:
            inputs = make()
            with torch.no_grad():
                forward[c.name].append(_seconds(partial(c.run, *inputs), inputs[0].device))
            both[c.name].append(_seconds(partial(_backward, c, inputs), inputs[0].device))
            on_round()
    return [
        Measured(
            c.name,
            c.is_ours,
            1e3 * statistics.median(forward[c.name]),
            1e3 * statistics.median(both[c.name]),
            extra[c.name],
            max(0, extra[c.name] - gradients),
            *errors[c.name],
        )
        for c in competitors
    ]


def _backward(competitor: Competitor, inputs: tuple[torch.Tensor, ...]) -> None:
    loss_of(competitor.run(*_worn(inputs))).backward()


def _worn(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Views of the inputs: a leaf may not be overwritten, and logits never are leaves."""
    return tuple(x.view_as(x) for x in inputs)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return 1e-3 * float(start.elapsed_time(end))
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_extra_bytes(work: Callable[[], object]) -> int:
    """The most memory that work held beyond what was there before: of the GPU, or resident."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # what was freed and is kept for later would take what comes now, and not be seen
    _give_back_freed_memory()
    # the kernel's own mark of the most that was ever resident, set back to now (Documentation/filesystems/proc.rst)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _give_back_freed_memory() -> None:
    with contextlib.suppress(AttributeError, OSError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def read_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second that a sum over fp32 reads: what a row kernel can hope for. The best of ten."""
    x = torch.ones(megabytes * 2**18, device=device)
    x.sum()
    return x.nbytes / min(_seconds(x.sum, device) for _ in range(10))
