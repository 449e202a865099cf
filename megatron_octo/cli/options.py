"""Options that several commands take, the types of their values, and what a shell completes them to."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from megatron_octo.errors import OctoError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from megatron_octo.recipe import Recipe
    from megatron_octo.runtime.run_folder import RunFolder

P = ParamSpec("P")

PATH = click.Path(path_type=Path)
"""A path as it was given; whoever opens it says what is wrong with it."""


class WholeNumber(click.ParamType[int]):
    """A number from 1 to `most`, in ASCII digits."""

    name = "integer"

    def __init__(self, most: int) -> None:
        self.most = most

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """`N` in the help of every option of this type."""
        return "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Take digits, or a default that is a number already."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= self.most):
            self.fail(f"{text[:40]!r} is not a whole number from 1 to {self.most:,}", param, ctx)
        return int(text)


class OutputFile(click.Path):
    """A file to write. It is refused before the work whose results it is for, not after."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a path in a folder that exists."""
        path = Path(value)
        if not path.parent.is_dir():
            self.fail(f"{str(path)!r}: there is no folder {str(path.parent)!r}; make it first", param, ctx)
        return super().convert(value, param, ctx)


@dataclass(frozen=True)
class RunOptions:
    """The recipe, its overrides, and where its run folder is: what most commands start from."""

    recipe: str
    overrides: tuple[str, ...]
    runs: Path | None

    def load(self) -> tuple["Recipe", "RunFolder"]:
        """The checked recipe and its run folder.

        Raises:
            RecipeError: with every problem found.
        """
        from megatron_octo.recipe import load_recipe
        from megatron_octo.runtime.run_folder import RunFolder

        recipe = load_recipe(self.recipe, self.overrides)
        return recipe, RunFolder.for_recipe(recipe, self.runs)


def run_options(function: Callable[Concatenate[RunOptions, P], int]) -> Callable[..., int]:
    """Give a command RECIPE, --set and --runs; the function takes them as one `RunOptions`."""

    @click.argument("recipe", shell_complete=_complete_recipe, help="A shipped recipe's name, or a .yaml file.")
    @click.option(
        "-s",
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key, dotted: -s train.learning_rate=1e-3 (repeatable).",
    )
    @click.option(
        "--runs", type=PATH, metavar="DIR", show_default="$OCTO_RUNS, else ./runs", help="Where run folders are."
    )
    @wraps(function)
    def command(recipe: str, overrides: tuple[str, ...], runs: Path | None, *args: P.args, **settings: P.kwargs) -> int:
        return function(RunOptions(recipe, overrides, runs), *args, **settings)

    return command


def stage_argument(help_text: str, many: bool = True) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command the argument STAGE, or any number of them as `stages`."""
    if many:
        return click.argument("stages", nargs=-1, metavar="[STAGE]...", shell_complete=_complete_stage, help=help_text)
    return click.argument("stage", shell_complete=_complete_stage, help=help_text)


def source_option() -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command --source, any number of times, as `sources`."""
    return click.option(
        "--source",
        "sources",
        multiple=True,
        shell_complete=_complete_source,
        show_default="all that a stage uses",
        help="Only this source (repeatable).",
    )


def _complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Shipped recipes; files where none begins like this."""
    from click.shell_completion import CompletionItem

    from megatron_octo.recipe import shipped_recipes

    names = [CompletionItem(name) for name in shipped_recipes() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def _complete_stage(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    recipe = _recipe_so_far(ctx)
    given = ctx.params.get(param.name or "") or ()
    stages = [] if recipe is None else recipe.in_order()
    return [stage for stage in stages if stage.startswith(incomplete) and stage not in given]


def _complete_source(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    recipe = _recipe_so_far(ctx)
    return [] if recipe is None else [source for source in recipe.data.sources if source.startswith(incomplete)]


def _recipe_so_far(ctx: click.Context) -> "Recipe | None":
    """The recipe that is named before the word to complete; None where it cannot be loaded."""
    # click parses no arguments after an option that still lacks its value; it leaves them in ctx.args
    name = ctx.params.get("recipe") or next(iter(ctx.args), "")
    options = RunOptions(name, ctx.params.get("overrides") or (), None)
    try:
        return options.load()[0]
    except (OctoError, OSError):  # a shell that completes has no place for a message
        return None
