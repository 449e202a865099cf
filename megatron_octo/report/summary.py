"""summary.json, which collects the numbers of every leg, and the tables that show it."""

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
from megatron_octo.report.models import HeldoutResult, RlHeldoutResult, RlResult, RlSummary, StageResult, Summary
from megatron_octo.report.numbers import short_duration, short_number
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.files import sha256_of, write_json_atomically
from megatron_octo.runtime.run_folder import RunFolder

_RESULT_KEYS = tuple(name for name, field in StageResult.model_fields.items() if field.is_required())
"""The numbers that the trainer records in a stage's result.json. Other keys of a stage belong to other legs."""
_HELDOUT_KEYS = tuple(HeldoutResult.model_fields)
_RL_HELDOUT_KEYS = tuple(RlHeldoutResult.model_fields)
_RL_RESULT_KEYS = tuple(RlResult.model_fields)


def write_summary(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Update summary.json with the stages that are complete, and return it.

    Keys that other legs wrote are kept. A stage whose result.json is gone, since it is trained again, loses its
    numbers here too.

    Raises:
        DataError: summary.json, a result.json or a heldout.json is not what its writer leaves.
    """
    summary = _read(run.summary, Summary, "move it away and run this again") if run.summary.is_file() else {}
    before = summary.get("stages", {})
    stages = {}
    for name in [*recipe.in_order(), *(name for name in before if name not in recipe.stages)]:
        entry = {
            key: value for key, value in before.get(name, {}).items() if key not in (*_RESULT_KEYS, *_HELDOUT_KEYS)
        }
        if run.result(name).is_file():
            result = _stage_result(run.result(name))
            entry = (
                {key: result[key] for key in _RESULT_KEYS}
                | _heldout_numbers(run, name, result.get("checkpoint"))
                | entry
            )
        if entry:
            stages[name] = entry
    summary = summary | {"recipe": recipe.name, "stages": stages}
    if rl_runs := {stage: numbers for stage in recipe.stages if (numbers := _rl_numbers(run, stage))}:
        summary["rl"] = summary.get("rl", {}) | rl_runs
    write_json_atomically(run.summary, summary)
    return summary


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a table of stages, one of validation losses (a row a source, a column a stage), and one of RL runs.

    A number that the summary lacks is shown as a dash.
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
    _print_rl(summary.get("rl", {}), console)


def _print_rl(rl_runs: dict[str, dict[str, Any]], console: Console) -> None:
    if not rl_runs:
        return
    table = _table("RL", "from")
    for column in ("steps", "held-out right", "response length", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, numbers in rl_runs.items():
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
    shown = [name for name, by_source in losses.items() if by_source]
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
    """A file's object as it is, after its values were checked against the model's types."""
    value = read_json_object(path, DataError, way_out)
    validated(value, model, str(path), DataError, way_out)
    return value


def _stage_result(path: Path) -> dict[str, Any]:
    way_out = "remove it and run `octo train` to finish the stage again"
    if missing := [key for key in _RESULT_KEYS if key not in read_json_object(path, DataError, way_out)]:
        raise DataError(f"{path}: lacks {', '.join(missing)}; {way_out}")
    return _read(path, StageResult, way_out)


def _rl_numbers(run: RunFolder, stage: str) -> dict[str, Any]:
    """The numbers of the RL run from a stage: accuracy before and after, the length of responses, and so on."""
    folder = run.rl(stage)
    if not folder.result.is_file():
        return {}
    way_out = "remove it and run `octo rl` again"
    trained = _read(folder.result, RlResult, way_out)
    measured = _read(folder.heldout, RlSummary, way_out) if folder.heldout.is_file() else {}
    numbers = {key: measured[key] for key in _RL_HELDOUT_KEYS if key in measured}
    return numbers | {key: trained[key] for key in _RL_RESULT_KEYS if key in trained}


def _heldout_numbers(run: RunFolder, stage: str, checkpoint: str | None) -> dict[str, Any]:
    """The stage's accuracy; nothing if it was measured on another checkpoint than the last, or on other problems."""
    path = run.heldout_result(stage)
    if not path.is_file() or checkpoint is None:
        return {}
    measured = _read(path, HeldoutResult, "remove it and run `octo heldout` again")
    manifest = run.checkpoints(stage) / checkpoint / MANIFEST
    inputs = {"checkpoint_manifest_sha256": manifest, "problems_sha256": run.heldout}
    if any(not file.is_file() or sha256_of(file) != measured.get(key) for key, file in inputs.items()):
        return {}
    return {key: measured[key] for key in _HELDOUT_KEYS}


def _shown(value: Any, form: Callable[[Any], str]) -> str:
    return "-" if value is None else form(value)


def _from_to(stage: dict[str, Any], quantity: str, form: Callable[[Any], str]) -> str:
    ends = [stage.get(f"{end}_{quantity}") for end in ("first", "last")]
    return "-" if ends == [None, None] else " > ".join(_shown(end, form) for end in ends)
