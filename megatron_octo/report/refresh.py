"""Bring a run's summary, tables and curves up to date, after training, after RL, or for `octo report`."""

from rich.console import Console

from megatron_octo.recipe import Recipe
from megatron_octo.report.curves import draw_curves
from megatron_octo.report.rl_curves import draw_rl_curves
from megatron_octo.report.summary import print_summary, write_summary
from megatron_octo.runtime.run_folder import RunFolder


def refresh_report(recipe: Recipe, run: RunFolder, console: Console) -> None:
    """Write summary.json and curves.png, print the tables, and say where both files are.

    Nothing is done before a stage has begun.

    Raises:
        DataError: summary.json, or a result that it collects, is damaged.
    """
    if not any(run.metrics(stage).is_file() for stage in recipe.stages):
        return
    print_summary(write_summary(recipe, run), console)
    print(f"curves: {draw_curves(recipe, run, run.curves)}\nsummary: {run.summary}")


def refresh_rl_report(recipe: Recipe, run: RunFolder, stage: str, console: Console) -> None:
    """Draw the curves of the RL run from a stage, then refresh the report of the whole run.

    Raises:
        DataError: as in `refresh_report`, or the RL run's heldout.json is damaged.
    """
    print(f"RL curves: {draw_rl_curves(run, stage)}")
    refresh_report(recipe, run, console)
