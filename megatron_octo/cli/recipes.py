"""`octo recipes` and `octo recipe`: what is shipped, and one recipe with every default."""

import click

from megatron_octo.cli.commands import OctoCommand
from megatron_octo.cli.options import RunOptions, run_options


@click.command("recipes", cls=OctoCommand, examples=["octo recipes"])
def list_recipes() -> int:
    """List the shipped recipes."""
    from megatron_octo.recipe import load_recipe, shipped_recipes

    for name in shipped_recipes():
        print(f"{name:<16} {load_recipe(name).description}")
    return 0


@click.command("recipe", cls=OctoCommand, examples=["octo recipe octothinker-3b", "octo recipe tiny -s seed=2"])
@run_options
def print_recipe(options: RunOptions) -> int:
    """Print a recipe, resolved and checked."""
    from megatron_octo.recipe import dump_recipe

    resolved, _ = options.load()
    print(dump_recipe(resolved), end="")
    return 0
