"""summary.json: one place where every leg's numbers can be found, and the table of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_json_object, validated
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.report.models import HeldoutResult, RlResult, RlSummary, StageResult, Summary
from megatron_octo.report.numbers import short_duration, short_number
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.files import sha256_of, write_json_atomically
from megatron_octo.runtime.run_folder import RunFolder

RESULT_KEYS = (
    "tokens",
    "steps",
    "first_lr",
    "last_lr",
    "first_loss",
    "last_loss",
    "validation_loss",
    "parent",
    "parent_validation_loss",
    "wall_seconds",
    "tokens_per_second",
)
"""What the trainer says of a stage in its result.json; every other key of a stage belongs to another leg."""

HELDOUT_KEYS = ("accuracy", "problems")
"""Of the held-out problems, the share answered right, and how many there are."""


RL_HELDOUT_KEYS = ("accuracy_before", "accuracy_after", "problems")
RL_RESULT_KEYS = ("steps", "mean_response_length", "wall_seconds", "prompts", "prompts_in_test_sets")


def write_summary(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Bring summary.json up to date with the stages that are done, and return it.

    Keys that other legs wrote are kept. A stage whose result.json is gone (it is being trained again) loses
    its numbers here too.

    Raises:
        DataError: summary.json, a result.json or a heldout.json is not what its writer leaves.
    """
    summary = _read(run.summary, Summary, "move it away and run this again") if run.summary.is_file() else {}
    before = summary.get("stages", {})
    stages = {}
    for name in [*recipe.in_order(), *(name for name in before if name not in recipe.stages)]:
        entry = {key: value for key, value in before.get(name, {}).items() if key not in (*RESULT_KEYS, *HELDOUT_KEYS)}
        if run.result(name).is_file():
            result = _result(run.result(name))
            entry = {key: result[key] for key in RESULT_KEYS} | _heldout(run, name, result.get("checkpoint")) | entry
        if entry:
            stages[name] = entry
    summary = summary | {"recipe": recipe.name, "stages": stages}
    if reinforced := {stage: numbers for stage in recipe.stages if (numbers := _reinforced(run, stage))}:
        summary["rl"] = summary.get("rl", {}) | reinforced
    write_json_atomically(run.summary, summary)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a table with one row a stage, and one of validation losses, a row a source and a column a stage.

    Only what the summary holds is shown; what it lacks is a dash.
    """
    stages: dict[str, dict[str, Any]] = summary.get("stages", {})
    if not any("tokens" in stage for stage in stages.values()):
        console.print("no stage is done yet")
        return
    table = _table(escape(str(summary.get("recipe", ""))), "stage", "parent")
    for column in ("tokens", "learning rate", "loss", "tokens/s", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, stage in stages.items():
        table.add_row(
            escape(name),
            escape(stage.get("parent") or "-"),
            _shown(stage.get("tokens"), format_tokens),
            _from_to(stage, "lr", short_number),
            _from_to(stage, "loss", "{:.3f}".format),
            _shown(stage.get("tokens_per_second"), "{:,.0f}".format),
            _shown(stage.get("wall_seconds"), short_duration),
        )
    console.print(table)
    _print_validation(stages, console)
    _print_reinforced(summary.get("rl", {}), console)


def _print_reinforced(reinforced: dict[str, dict[str, Any]], console: Console) -> None:
    if not reinforced:
        return
    table = _table("RL", "from")
    for column in ("steps", "held-out right", "response length", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, numbers in reinforced.items():
        before, after = (_shown(numbers.get(f"accuracy_{when}"), "{:.1%}".format) for when in ("before", "after"))
        table.add_row(
            escape(name),
            _shown(numbers.get("steps"), str),
            f"{before} to {after}",
            _shown(numbers.get("mean_response_length"), "{:.0f}".format),
            _shown(numbers.get("wall_seconds"), short_duration),
        )
    console.print(table)


def _print_validation(stages: dict[str, dict[str, Any]], console: Console) -> None:
    losses: dict[str, dict[str, float]] = {name: stage.get("validation_loss") or {} for name, stage in stages.items()}
    shown = [name for name, of_stage in losses.items() if of_stage]
    if not shown:
        return
    table = _table("validation loss", "source")
    for name in shown:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for source in dict.fromkeys(source for name in shown for source in losses[name]):
        table.add_row(escape(source), *(_shown(losses[name].get(source), "{:.3f}".format) for name in shown))
    if any("accuracy" in stages[name] for name in shown):
        table.add_section()
        right = (_shown(stages[name].get("accuracy"), "{:.1%}".format) for name in shown)
        table.add_row("held-out problems right", *right)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _read(path: Path, model: type[BaseModel], way_out: str) -> dict[str, Any]:
    """A file as it stands, once its values are found to be of the model's types."""
    value = read_json_object(path, DataError, way_out)
    validated(value, model, str(path), DataError, way_out)
    return value


def _result(path: Path) -> dict[str, Any]:
    way_out = "remove it and run `octo train` to finish the stage again"
    if missing := [key for key in RESULT_KEYS if key not in read_json_object(path, DataError, way_out)]:
        raise DataError(f"{path}: lacks {', '.join(missing)}; {way_out}")
    return _read(path, StageResult, way_out)


def _reinforced(run: RunFolder, stage: str) -> dict[str, Any]:
    """What RL from a stage came to: accuracy before and after, and how long its responses are."""
    result, held = run.reinforced(stage) / "result.json", run.reinforced(stage) / "heldout.json"
    if not result.is_file():
        return {}
    way_out = "remove it and run `octo rl` again"
    trained = _read(result, RlResult, way_out)
    measured = _read(held, RlSummary, way_out) if held.is_file() else {}
    numbers = {key: measured[key] for key in RL_HELDOUT_KEYS if key in measured}
    return numbers | {key: trained[key] for key in RL_RESULT_KEYS if key in trained}


def _heldout(run: RunFolder, stage: str, checkpoint: str | None) -> dict[str, Any]:
    """The stage's accuracy, unless it was measured on another checkpoint than it ends with, or other problems."""
    path = run.evaluation(stage) / "heldout.json"
    if not path.is_file() or checkpoint is None:
        return {}
    measured = _read(path, HeldoutResult, "remove it and run `octo heldout` again")
    manifest = run.checkpoints(stage) / checkpoint / MANIFEST
    of = {"checkpoint_manifest_sha256": manifest, "problems_sha256": run.heldout}
    if any(not file.is_file() or sha256_of(file) != measured.get(key) for key, file in of.items()):
        return {}
    return {key: measured[key] for key in HELDOUT_KEYS}


def _shown(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _from_to(stage: dict[str, Any], what: str, form: Callable[[Any], str]) -> str:
    ends = [stage.get(f"{end}_{what}") for end in ("first", "last")]
    return "-" if ends == [None, None] else " > ".join(_shown(end, form) for end in ends)
