"""`octo status`: the tree of stages, and the data sources."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_record
from megatron_octo.recipe import BASE, Recipe
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.report.models import PreparedSource
from megatron_octo.report.state import StageState, is_prepared, stage_states
from megatron_octo.runtime.run_folder import RunFolder

_STYLE = {"done": "green", "running": "cyan", "interrupted": "yellow", "ready": "blue", "waiting": "dim"}


def print_status(recipe: Recipe, run: RunFolder, console: Console) -> None:
    """Print the tree of stages with the state of each, then the data sources."""
    states = {state.name: state for state in stage_states(recipe, run)}
    base = recipe.model.base if recipe.model.initialize == "base" else "random weights"
    tree = Tree(f"[bold]{escape(recipe.name)}[/bold]  [dim]from {escape(str(base))}[/dim]")
    _add_children(tree, BASE, recipe, states)
    console.print(tree)
    console.print(_sources(recipe, run))


def _add_children(tree: Tree, parent: str, recipe: Recipe, states: dict[str, StageState]) -> None:
    for name in recipe.children(parent):
        _add_children(tree.add(_line(recipe, states[name])), name, recipe, states)


def _line(recipe: Recipe, state: StageState) -> str:
    style = _STYLE[state.state]
    mark = recipe.stages[state.name].parent.at
    parts = [f"[bold]{escape(state.name)}[/bold]" + (f" [dim]at {format_tokens(mark)}[/dim]" if mark else "")]
    parts.append(f"[{style}]{state.state}[/{style}]")
    parts.append(f"step {state.step:,} of {state.steps:,}" if state.step else f"{state.steps:,} steps")
    if state.tokens:
        parts.append(f"{format_tokens(state.tokens)} tokens")
    if state.last_loss is not None:
        parts.append(f"loss {state.last_loss:.3f}")
    if state.last_checkpoint_step is not None and state.state != "done":
        parts.append(f"checkpoint at {state.last_checkpoint_step:,}")
    if state.missing_sources and state.state != "done":
        count = len(recipe.stages[state.name].mixture)
        parts.append(f"[yellow]{len(state.missing_sources)} of {count} sources missing[/yellow]")
    return "  ".join(parts)


def _sources(recipe: Recipe, run: RunFolder) -> Table:
    table = Table(
        title="data", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("source", "kind", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("used by")
    for name, source in recipe.data.sources.items():
        prepared = is_prepared(run, name)
        tokens = _training_tokens(run.source_manifest(name)) if prepared else None
        table.add_row(
            escape(name),
            source.kind,
            "[green]prepared[/green]" if prepared else "[yellow]missing[/yellow]",
            "-" if tokens is None else format_tokens(tokens),
            escape(", ".join(stage for stage in recipe.in_order() if name in recipe.stages[stage].mixture)) or "-",
        )
    return table


def _training_tokens(path: Path) -> int | None:
    """A source's training tokens; None where its manifest cannot be read, since `octo data verify` reports that."""
    try:
        return read_record(path, PreparedSource, DataError, "prepare it again").train.tokens
    except DataError:
        return None
