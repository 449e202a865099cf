"""The benchmark of the token operators: a table on the terminal, JSON and a plot."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels
from megatron_octo.ops.bench.competitors import MEAN, for_linear, for_logits
from megatron_octo.ops.bench.measure import Measurement, measure, read_bandwidth

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_REFERENCE_ROWS = 64
"""Rows of the fp64 reference computed at a time."""


@dataclass(frozen=True)
class Case:
    """Form and sizes of one measurement."""

    form: str
    """`logits` or `linear`."""
    tokens: int
    vocabulary: int
    hidden: int
    """Hidden size; used by `linear` only."""
    dtype: str
    """A key of DTYPES."""
    rounds: int


def run_case(case: Case, console: Console) -> dict[str, Any]:
    """Measure one case, on the GPU if there is one, and print its table.

    Returns:
        The case, the device, and the measurements, ready for JSON.

    Raises:
        OperatorError: unknown form or dtype.
    """
    if case.form not in ("logits", "linear") or case.dtype not in DTYPES:
        raise OperatorError(f"{case}: form must be logits or linear, and dtype one of {', '.join(DTYPES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    competitors = for_logits(device) if case.form == "logits" else for_linear(device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"{case.form}", total=len(competitors) * (case.rounds + 1))
        inputs = _inputs(case, device)

        def make() -> tuple[torch.Tensor, ...]:
            return tuple(x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs)

        measurements = measure(competitors, make, _reference, case.rounds, lambda: progress.advance(task))
        bandwidth = read_bandwidth(device)
    result = {
        "case": asdict(case),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "compiled": kernels.is_compiled_for(inputs[0]),
        "torch": torch.__version__,
        "read_bandwidth": bandwidth,
        "measured": [asdict(m) for m in measurements],
    }
    _print(case, measurements, result, console)
    return result


def _inputs(case: Case, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(device=device).manual_seed(0)
    dtype = DTYPES[case.dtype]
    targets = torch.randint(case.vocabulary, (case.tokens,), generator=generator, device=device)
    if case.form == "logits":
        logits = torch.randn(case.tokens, case.vocabulary, generator=generator, device=device)
        return logits.mul_(3.0).to(dtype), targets
    hidden = torch.randn(case.tokens, case.hidden, generator=generator, device=device).to(dtype)
    weight = torch.randn(case.vocabulary, case.hidden, generator=generator, device=device)
    return hidden, weight.mul_(3.0 * case.hidden**-0.5).to(dtype), targets


@torch.no_grad()
def _reference(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropy in fp64."""
    *factors, targets = inputs
    log_probs, entropies = [], []
    for start in range(0, len(targets), _REFERENCE_ROWS):
        rows = slice(start, start + _REFERENCE_ROWS)
        logits = factors[0][rows].double()
        if len(factors) == 2:
            logits = torch.cat([logits @ part.double().t() for part in factors[1].split(16_384)], dim=1)
        log_p = torch.log_softmax(logits, dim=-1)
        log_probs.append(log_p.gather(1, targets[rows, None])[:, 0])
        entropies.append(-(log_p.exp() * log_p).sum(dim=-1))
    return torch.cat(log_probs), torch.cat(entropies)


def _print(case: Case, measurements: list[Measurement], result: dict[str, Any], console: Console) -> None:
    size = f"{case.tokens} x {case.vocabulary:,}" + (f", hidden {case.hidden}" if case.form == "linear" else "")
    title = f"{case.form}, {size}, {case.dtype}: {result['device']}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)  # eight columns must fit into 80 characters
    table.add_column("", no_wrap=True)
    for column in ("fwd, ms", "both", "x octo", "MB", "scratch", "error", "H error"):
        table.add_column(column, justify="right", no_wrap=True)
    ours = next(m for m in measurements if m.is_ours)
    for m in measurements:
        table.add_row(
            m.name,
            f"{m.forward_ms:.1f}" if m.forward_ms >= 10 else f"{m.forward_ms:.3f}",
            f"{m.both_ms:.1f}" if m.both_ms >= 10 else f"{m.both_ms:.3f}",
            f"{m.both_ms / ours.both_ms:.2f}",
            f"{m.extra_bytes / 1e6:,.0f}",
            f"{m.scratch_bytes / 1e6:,.0f}",
            f"{m.log_prob_error:.1e}",
            "-" if m.entropy_error is None else f"{m.entropy_error:.1e}",
        )
    console.print(table)
    note = (
        "MB: peak memory beyond the inputs; scratch: without their gradients; error: of log-prob and entropy, to fp64"
    )
    has_mean = any(m.name.endswith(MEAN) for m in measurements)
    console.print(note + ("; * returns only the mean loss" if has_mean else ""))
    if case.form == "logits":
        read = case.tokens * case.vocabulary * DTYPES[case.dtype].itemsize
        share = read / (1e-3 * ours.forward_ms) / result["read_bandwidth"]
        rate = f"{read / (1e-3 * ours.forward_ms) / 1e9:,.1f} of {result['read_bandwidth'] / 1e9:,.1f} GB/s"
        console.print(f"octo forward reads {rate}, {100 * share:.0f}% of the measured read bandwidth", highlight=False)


def write(results: list[dict[str, Any]], json_path: Path | None, plot_path: Path | None) -> None:
    """Write the results as JSON and as a plot, each if a path is given."""
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=2) + "\n")
    if plot_path is not None:
        from megatron_octo.ops.bench.plot import draw

        draw(results, plot_path)
