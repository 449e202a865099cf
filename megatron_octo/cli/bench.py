"""`octo bench`: measure kernels against the field."""

from pathlib import Path

import click

from megatron_octo.cli.commands import OctoCommand, OctoGroup
from megatron_octo.cli.options import OutputFile, WholeNumber
from megatron_octo.errors import RuntimeSetupError


@click.command(
    "logprob",
    cls=OctoCommand,
    examples=[
        "octo bench logprob --threads 2 --json bench.json --plot bench.png",
        "octo bench logprob --form logits --tokens 8192 --vocabulary 151936",
    ],
)
@click.option(
    "--form", type=click.Choice(["logits", "linear", "both"]), default="both", help="From logits, or hidden states."
)
@click.option("--tokens", type=WholeNumber(1 << 20), default=512, help="Tokens a call.")
@click.option("--vocabulary", type=WholeNumber(1 << 24), default=128_256, help="Size of the vocabulary.")
@click.option("--hidden", type=WholeNumber(1 << 16), default=2048, help="Hidden size, for linear.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="bf16", help="Type of the inputs.")
@click.option("--rounds", type=WholeNumber(10_000), default=7, help="Measurements of each contender.")
@click.option("--threads", type=WholeNumber(4096), show_default="all cores", help="Threads on the CPU.")
@click.option("--json", "json_path", type=OutputFile(), metavar="FILE", help="Write the results here.")
@click.option("--plot", "plot_path", type=OutputFile(), metavar="FILE", help="Draw them here, as a PNG.")
def logprob(
    form: str,
    tokens: int,
    vocabulary: int,
    hidden: int,
    dtype: str,
    rounds: int,
    threads: int | None,
    json_path: Path | None,
    plot_path: Path | None,
) -> int:
    """Measure token log-probs."""
    import torch
    from rich.console import Console

    from megatron_octo.ops.bench.run import Case, run_case, write

    if threads is not None:
        torch.set_num_threads(threads)
    forms = ("logits", "linear") if form == "both" else (form,)
    try:
        results = [run_case(Case(name, tokens, vocabulary, hidden, dtype, rounds), Console()) for name in forms]
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        size = f"--tokens {tokens} x --vocabulary {vocabulary} with --hidden {hidden}"
        raise RuntimeSetupError(f"{size} does not fit into memory; give smaller ones") from None
    write(results, json_path, plot_path)
    return 0


@click.group(
    "bench",
    cls=OctoGroup,
    sections={"Commands": [logprob]},
    examples=["octo bench logprob --threads 2"],
)
def bench_commands() -> None:
    """Measure kernels against the field."""
