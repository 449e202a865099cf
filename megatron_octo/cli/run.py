"""The legs of a run: `octo train`, `rl`, `export`, `heldout`, `report` and `status`.

Each loads the recipe before it imports the rest, which takes seconds, so that a mistake is reported at once.
"""

import click

from megatron_octo.cli.commands import OctoCommand
from megatron_octo.cli.options import RunOptions, WholeNumber, run_options, stage_argument


@click.command(
    "train",
    cls=OctoCommand,
    examples=["octo train tiny", "octo train tiny stable -s train.learning_rate=1e-3 --stop-after-step 100"],
)
@run_options
@stage_argument("Stages to train (default: all, each after its parent).")
@click.option("--accept-changes", is_flag=True, help="Resume although the data order or settings changed.")
@click.option("--stop-after-step", type=WholeNumber(10**9), help="Save and stop after step N.")
def train(options: RunOptions, stages: tuple[str, ...], accept_changes: bool, stop_after_step: int | None) -> int:
    """Train the stages that are not complete, or resume them."""
    from megatron_octo.runtime.rank import Rank, is_rank_already
    from megatron_octo.runtime.signals import listen_for_stop

    # In a process that is a rank, a signal that comes while the rest is imported is noted too.
    stop = listen_for_stop() if is_rank_already() else None
    try:
        recipe, run = options.load()
        from rich.console import Console

        from megatron_octo.train.run import train_stages

        exit_status = train_stages(recipe, run, stages, accept_changes=accept_changes, stop_after_step=stop_after_step)
        if Rank.from_environment().is_first:
            from megatron_octo.report.refresh import refresh_report

            refresh_report(recipe, run, Console())
        return exit_status
    finally:
        if stop is not None:
            stop.ignore_others()


@click.command("rl", cls=OctoCommand, examples=["octo rl tiny decay-hybrid", "octo rl tiny stable -s rl.seed=2"])
@run_options
@stage_argument("The stage to start from.", many=False)
def rl(options: RunOptions, stage: str) -> int:
    """Run PPO or GRPO from a stage's export, by OpenRLHF."""
    recipe, run = options.load()
    (stage,) = recipe.chosen([stage])
    from rich.console import Console

    from megatron_octo.eval.heldout import answer_heldout_after_rl
    from megatron_octo.report.refresh import refresh_rl_report
    from megatron_octo.rl.launch import train_rl

    console = Console()
    train_rl(recipe, run, stage, console)
    if run.heldout.is_file():
        answer_heldout_after_rl(recipe, run, stage, console)
    refresh_rl_report(recipe, run, stage, console)
    return 0


@click.command("export", cls=OctoCommand, examples=["octo export tiny", "octo export octothinker-3b decay-hybrid"])
@run_options
@stage_argument("Stages to export (default: all).")
def export(options: RunOptions, stages: tuple[str, ...]) -> int:
    """Export a stage's last checkpoint to Hugging Face format."""
    recipe, run = options.load()
    chosen = recipe.chosen(stages)
    from megatron_octo.bridge.stages import export_stages

    export_stages(recipe, run, chosen)
    return 0


@click.command("heldout", cls=OctoCommand, examples=["octo heldout tiny", "octo heldout tiny decay-long decay-short"])
@run_options
@stage_argument("Stages to ask (default: all).")
def heldout(options: RunOptions, stages: tuple[str, ...]) -> int:
    """Let exported stages answer the held-out problems, through vLLM."""
    recipe, run = options.load()
    chosen = recipe.chosen(stages)
    from rich.console import Console

    from megatron_octo.eval.heldout import answer_heldout
    from megatron_octo.report.refresh import refresh_report

    console = Console()
    answer_heldout(recipe, run, chosen, console)
    refresh_report(recipe, run, console)
    return 0


@click.command("report", cls=OctoCommand, examples=["octo report tiny"])
@run_options
def report(options: RunOptions) -> int:
    """Draw a run's curves and print its table again."""
    recipe, run = options.load()
    from rich.console import Console

    from megatron_octo.report.refresh import refresh_report

    run.read_recipe()
    refresh_report(recipe, run, Console())
    return 0


@click.command("status", cls=OctoCommand, examples=["octo status tiny", "octo status tiny --runs /scratch/runs"])
@run_options
def status(options: RunOptions) -> int:
    """Show which stages and sources are done, running or missing."""
    recipe, run = options.load()
    from rich.console import Console

    from megatron_octo.report.status import print_status

    print_status(recipe, run, Console())
    return 0
