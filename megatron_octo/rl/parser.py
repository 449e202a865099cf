"""OpenRLHF's own argument parser, without the Ray and vLLM that its module imports.

OpenRLHF's `cli/train_ppo_ray.py` builds the parser under `if __name__ == "__main__"`. The statements up to `parse_args`
are run here by themselves, so that a misspelt option or a bad value is refused before Ray starts, in OpenRLHF's words.
"""

import argparse
import ast
import os
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from megatron_octo.errors import RecipeError, RuntimeSetupError

_FIRST, _LAST = "parser = argparse.ArgumentParser()", "args = parser.parse_args()"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"rl: OpenRLHF refuses its options: {message}; correct it in rl.openrlhf")


def check_command_line(words: Sequence[str]) -> None:
    """Refuse a command line that OpenRLHF's parser refuses.

    Raises:
        RecipeError: an option that the parser does not know, or a value that it does not take.
        RuntimeSetupError: OpenRLHF is not installed, or has no parser where the known version has one.
    """
    package = find_spec("openrlhf")
    if package is None or not package.submodule_search_locations:
        raise RuntimeSetupError("RL needs openrlhf, not installed here; run `bash tools/install.sh`")
    path = Path(package.submodule_search_locations[0]) / "cli/train_ppo_ray.py"
    parser = _Parser(prog="OpenRLHF", allow_abbrev=False, add_help=False)
    names = {"parser": parser, "datetime": datetime, "os": os}  # names of the module that the statements use
    try:
        statements = ast.Module(_parser_statements(path.read_text()), type_ignores=[])
        exec(compile(statements, str(path), "exec"), names)  # noqa: S102 - what `octo rl` runs a moment later
    except (OSError, NameError, LookupError) as error:
        raise RuntimeSetupError(
            f"{path}: no argument parser where OpenRLHF 0.11.2 has one ({error}); reinstall that version"
        ) from None
    parser.parse_args(list(words))


def _parser_statements(source: str) -> list[ast.stmt]:
    """The statements between `_FIRST` and `_LAST`."""
    for block in ast.parse(source).body:
        if not isinstance(block, ast.If) or "__main__" not in ast.unparse(block.test):
            continue
        sources = [ast.unparse(statement) for statement in block.body]
        if _FIRST in sources and _LAST in sources:
            return block.body[sources.index(_FIRST) + 1 : sources.index(_LAST)]
    raise LookupError(f"nothing between `{_FIRST}` and `{_LAST}`")
