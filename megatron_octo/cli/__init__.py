"""`octo`: the command line. A command imports what it needs when it runs, so that `octo --help` is instant."""

import os
from collections.abc import Sequence

import click

from megatron_octo import __version__
from megatron_octo.cli.bench import bench_commands
from megatron_octo.cli.checkpoints import checkpoint_commands
from megatron_octo.cli.commands import OctoGroup, run_command
from megatron_octo.cli.convert import convert_commands
from megatron_octo.cli.data import data_commands
from megatron_octo.cli.recipes import list_recipes, print_recipe
from megatron_octo.cli.run import export, heldout, report, rl, status, train

__all__ = ["main", "octo"]

_COMPLETE = "_OCTO_COMPLETE"
"""Set by the script that switches on completion in a shell."""


@click.group(
    "octo",
    cls=OctoGroup,
    sections={
        "Run": [train, rl, export, heldout, report, status],
        "Data": [data_commands],
        "Checkpoints": [checkpoint_commands, convert_commands],
        "Recipes": [list_recipes, print_recipe],
        "Kernels": [bench_commands],
    },
    examples=["octo data prepare tiny", "octo train tiny", "octo train --help"],
)
@click.version_option(__version__, message="octo %(version)s")
def octo() -> None:
    """Take a base model through OctoThinker's mid-training and RL, on one recipe file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `octo`.

    Args:
        arguments: those of the command line (default: of this process).

    Returns:
        the exit status: 0; 2 for a usage error or bad input, 3 for a halted run, 130 where it was interrupted.
    """
    instruction = os.environ.get(_COMPLETE)
    if arguments is None and instruction:
        from click.shell_completion import shell_complete

        return shell_complete(octo, {}, "octo", _COMPLETE, instruction)
    return run_command(octo, "octo", arguments)
