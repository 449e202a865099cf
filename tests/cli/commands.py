"""Every command of `octo`, for tests that hold for all of them."""

from collections.abc import Iterator

import click

from megatron_octo.cli import octo


def walk(command: click.Command = octo, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, each with the words that name it after `octo`."""
    yield words, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from walk(below, (*words, name))


COMMANDS = dict(walk())
