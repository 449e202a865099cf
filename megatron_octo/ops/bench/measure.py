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
"""Weight of the entropy in the loss, which also holds the log-probs, as in PPO with an entropy bonus."""


@dataclass(frozen=True)
class Measurement:
    """Time, memory and error of one competitor."""

    name: str
    is_ours: bool
    forward_ms: float
    """Median."""
    both_ms: float
    """Median of forward and backward together."""
    extra_bytes: int
    """Peak memory of forward and backward beyond the inputs, with the gradients of the inputs."""
    scratch_bytes: int
    """The same without the gradients of the inputs, which every competitor has to return."""
    log_prob_error: float
    """Largest absolute difference from fp64, in nats."""
    entropy_error: float | None
    """The same for the entropy; None if the competitor does not compute it."""


def scalar_loss(outputs: Outputs) -> torch.Tensor:
    """The scalar that the backward pass starts from."""
    log_probs, entropy = outputs
    loss = log_probs.sum()
    return loss if entropy is None else loss + ENTROPY_WEIGHT * entropy.sum()


def measure(
    competitors: Sequence[Competitor],
    make: Callable[[], tuple[torch.Tensor, ...]],
    reference: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    rounds: int,
    on_round: Callable[[], None],
) -> list[Measurement]:
    """Measure all competitors, in turns, on bit-identical inputs.

    Args:
        make: returns fresh inputs that require gradients, with the targets last.
        reference: computes log-probs and entropy in fp64 from those inputs.
        rounds: timed rounds of each competitor, after one untimed round.
        on_round: called after each round of each competitor.
    """
    # 1. Reference
    forward: dict[str, list[float]] = {c.name: [] for c in competitors}
    both: dict[str, list[float]] = {c.name: [] for c in competitors}
    extra, errors = {}, {}
    inputs = make()
    gradients = sum(x.nbytes for x in inputs if x.requires_grad)
    exact = reference(*inputs)
    del inputs
    # 2. Error and memory; this also warms up compilers and caches
    for c in competitors:
        with torch.no_grad():
            log_probs, entropy = c.run(*make())
        is_mean = bool(log_probs.stride(0) == 0)  # a mean, expanded to the tokens
        wanted = exact[0].mean().expand_as(exact[0]) if is_mean else exact[0]
        entropy_error = None if entropy is None else float((entropy.double() - exact[1]).abs().max())
        errors[c.name] = (float((log_probs.double() - wanted).abs().max()), entropy_error)
        _backward(c, make())
        inputs = make()
        extra[c.name] = peak_extra_bytes(partial(_backward, c, inputs))
        on_round()
    # 3. Time
    for _ in range(rounds):
        for c in competitors:
            inputs = make()
            with torch.no_grad():
                forward[c.name].append(_seconds(partial(c.run, *inputs), inputs[0].device))
            both[c.name].append(_seconds(partial(_backward, c, inputs), inputs[0].device))
            on_round()
    return [
        Measurement(
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
    # Views, because in-place gradients cannot overwrite leaves, and in training logits are not leaves.
    views = (x.view_as(x) for x in inputs)
    scalar_loss(competitor.run(*views)).backward()


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
    """Peak memory of `work` beyond the memory in use before: GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Memory that malloc has freed but not returned would be used again unseen.
    _return_freed_memory()
    # Reset the kernel's peak of resident memory to the current value (Documentation/filesystems/proc.rst).
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _return_freed_memory() -> None:
    with contextlib.suppress(AttributeError, OSError):  # malloc_trim is glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def read_bandwidth(device: torch.device) -> float:
    """Read bandwidth of an fp32 sum over 512 MiB in bytes a second, best of ten: the upper bound for a row kernel."""
    x = torch.ones(2**27, device=device)
    x.sum()
    return x.nbytes / min(_seconds(x.sum, device) for _ in range(10))
