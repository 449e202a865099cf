"""`octo checkpoint`: look after checkpoints."""

from pathlib import Path

import click

from megatron_octo.cli.commands import OctoCommand, OctoGroup
from megatron_octo.cli.options import PATH


@click.command("verify", cls=OctoCommand, examples=["octo checkpoint verify runs/tiny/stages/stable/checkpoints"])
@click.argument("path", type=PATH, help="A step-... folder, or a folder of them.")
def verify(path: Path) -> int:
    """Recompute every file's SHA-256."""
    from megatron_octo.runtime.checkpoints import verify_checkpoints

    verify_checkpoints(path)
    return 0


@click.group(
    "checkpoint",
    cls=OctoGroup,
    sections={"Commands": [verify]},
    examples=["octo checkpoint verify runs/tiny/stages/stable/checkpoints"],
)
def checkpoint_commands() -> None:
    """Look after checkpoints."""
