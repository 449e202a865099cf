"""Commands whose help ends with examples, groups that list commands by section, and how either is run."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from megatron_octo.errors import OctoError, RuntimeSetupError, explain_os_error

_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


class OctoCommand(click.Command):
    """A command whose help shows defaults and ends with examples."""

    def __init__(self, name: str | None, *, examples: Sequence[str], **settings: Any) -> None:
        settings["context_settings"] = _SETTINGS | settings.get("context_settings", {})
        super().__init__(name, **settings)
        self.examples = examples

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; returns its exit status."""
        from megatron_octo.runtime.quiet import silence_library_warnings

        silence_library_warnings()
        try:
            Path.cwd()
        except FileNotFoundError:
            raise RuntimeSetupError("the folder this was started in is gone; change to one that is there") from None
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line that can be copied."""
        _write_examples(self.examples, formatter)


class OctoGroup(click.Group):
    """A group of commands, listed by section."""

    def __init__(
        self,
        name: str | None,
        *,
        sections: Mapping[str, Sequence[click.Command]],
        examples: Sequence[str],
        **settings: Any,
    ) -> None:
        settings["context_settings"] = _SETTINGS | settings.get("context_settings", {})
        commands = [command for section in sections.values() for command in section]
        super().__init__(name, commands=commands, subcommand_metavar="COMMAND ...", **settings)
        self.sections = sections
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the sections."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section's commands with the first sentence of their help."""
        width = max(len(name) for name in self.commands)
        for title, commands in self.sections.items():
            rows = [(f"{command.name:<{width}}", command.get_short_help_str(formatter.width)) for command in commands]
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line that can be copied."""
        _write_examples(self.examples, formatter)


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Example" if len(examples) == 1 else "Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def run_command(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run the command, and turn errors that a user can act on into messages.

    Args:
        command: returns its exit status.
        program: its name in messages.
        arguments: those of the command line (default: of this process).

    Returns:
        the exit status. click's own `main` is not used: it takes EOFError for an interruption, and it exits.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with command.make_context(program, words) as context:
            status: int = command.invoke(context)
            return status
    except click.exceptions.Exit as finished:  # --help and --version
        return finished.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OctoError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if (explanation := explain_os_error(error)) is None:
            raise
        print(f"{program}: {explanation}", file=sys.stderr)
        return OctoError.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
