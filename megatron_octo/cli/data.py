"""`octo data`: check, prepare and verify corpora, look at samples.

As in `run.py`, the recipe is loaded before the rest is imported.
"""

from typing import TYPE_CHECKING

import click

from megatron_octo.cli.commands import OctoCommand, OctoGroup
from megatron_octo.cli.options import RunOptions, WholeNumber, run_options, source_option, stage_argument
from megatron_octo.errors import DataError, RecipeError

if TYPE_CHECKING:
    from megatron_octo.data.executors import ExecutorName


@click.command(
    "prepare",
    cls=OctoCommand,
    examples=[
        "octo data prepare tiny",
        "octo data prepare octothinker-3b --workers 64",
        "octo data prepare octothinker-3b --executor slurm --executor-option partition=cpu",
    ],
)
@run_options
@source_option()
@click.option("--workers", type=WholeNumber(4096), default=2, help="Processes.")
@click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", help="Where they run.")
@click.option(
    "--executor-option",
    "executor_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For SLURM: partition=..., time=... (repeatable).",
)
def prepare(
    options: RunOptions,
    sources: tuple[str, ...],
    workers: int,
    executor: "ExecutorName",
    executor_options: tuple[str, ...],
) -> int:
    """Turn text into tokens: Megatron .bin and .idx files."""
    recipe, run = options.load()
    pairs = _pairs(executor_options)
    from rich.console import Console

    from megatron_octo.data.prepare import prepare as prepare_sources

    prepare_sources(
        recipe,
        run,
        sources=list(sources) or None,
        workers=workers,
        executor=executor,
        executor_options=pairs,
        console=Console(),
    )
    return 0


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise RecipeError(f"--executor-option {text!r}: write KEY=VALUE, e.g. partition=cpu")
        pairs[key] = value
    return pairs


@click.command(
    "check", cls=OctoCommand, examples=["octo data check octothinker-3b", "octo data check tiny --source web"]
)
@run_options
@source_option()
def check(options: RunOptions, sources: tuple[str, ...]) -> int:
    """Read and format the first rows of every source."""
    recipe, _ = options.load()
    from rich.console import Console

    from megatron_octo.data.check import check_sources

    return 0 if check_sources(recipe, list(sources) or None, Console()) else DataError.exit_code


@click.command("verify", cls=OctoCommand, examples=["octo data verify tiny", "octo data verify tiny --source web"])
@run_options
@source_option()
def verify(options: RunOptions, sources: tuple[str, ...]) -> int:
    """Recompute every prepared file's SHA-256."""
    recipe, run = options.load()
    from rich.console import Console

    from megatron_octo.data.verify import verify_sources

    return 0 if verify_sources(recipe, run, list(sources) or None, Console()) else DataError.exit_code


@click.command(
    "show",
    cls=OctoCommand,
    examples=["octo data show tiny decay-long 0 1"],
    # a negative number is a sample number that is refused with the numbers there are, and no option
    context_settings={"ignore_unknown_options": True},
)
@run_options
@stage_argument("The stage whose samples to show.", many=False)
@click.argument("samples", type=int, nargs=-1, required=True, help="Sample numbers, counted from 0 within the stage.")
def show(options: RunOptions, stage: str, samples: tuple[int, ...]) -> int:
    """Print samples of a stage as text."""
    recipe, run = options.load()
    from megatron_octo.data.show import show_samples

    show_samples(recipe, run, stage, samples)
    return 0


@click.group(
    "data",
    cls=OctoGroup,
    sections={"Commands": [check, prepare, verify, show]},
    examples=["octo data prepare tiny"],
)
def data_commands() -> None:
    """Check, prepare and verify corpora, look at samples."""
