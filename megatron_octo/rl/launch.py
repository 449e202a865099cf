"""`octo rl`: a plan is made, OpenRLHF runs it in a process of its own, and its progress is read from its metrics."""

import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_octo.errors import RecipeError, RuntimeSetupError, TrainingHalted
from megatron_octo.recipe import Recipe
from megatron_octo.rl.checkpoints import prepare_resume, publish_best
from megatron_octo.rl.driver import locked, openrlhf_process
from megatron_octo.rl.environment import EXTRA_VARIABLES, SLOTS, driver_environment, left_out
from megatron_octo.rl.plan import RlPlan, plan_run, recorded_digest
from megatron_octo.rl.session import Session
from megatron_octo.runtime.files import write_json_atomically, write_text_atomically
from megatron_octo.runtime.local_ray import keep_on_this_machine
from megatron_octo.runtime.records import read_records
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.runtime.torch_extensions import use_own_extensions

_POLL_SECONDS = 0.5
_LOG_LINES = 15
"""How much of OpenRLHF's log an error message quotes."""
_SHOWN = {"step", "reward", "accuracy", "response_length", "truncated_share"}
"""Metrics that a line of progress needs."""


def train_rl(recipe: Recipe, run: RunFolder, stage: str, console: Console) -> Path:
    """Train a stage's export as the recipe's `rl` section says. Returns the folder of the last model.

    A run that is complete with the same settings, export and prompts is skipped. A run that was interrupted resumes
    from its last checkpoint.

    Raises:
        RecipeError: the recipe has no `rl` section, its numbers or options cannot work, or the folder holds
            checkpoints of other settings.
        CheckpointError: the stage is not exported, or the export is no longer what was written.
        DataError: prompts that cannot be used.
        RuntimeSetupError: packages or GPUs are missing, another run works in the folder, or OpenRLHF failed; with the
            path of its log.
        TrainingHalted: the alarm ended the run.
    """
    plan = plan_run(recipe, run, stage)
    if plan.is_complete:
        console.print(f"{stage}: RL is already complete ({plan.folder.result}); skipped", highlight=False)
        return plan.folder.last
    with locked(plan.folder) as lock:
        _check_settings(plan)  # under the lock: another run may have left checkpoints since the plan was made
        _write_prompts(plan, console)
        prepare_resume(plan.folder.checkpoints, with_critic=plan.rl.algorithm == "gae")
        plan.folder.result.unlink(missing_ok=True)
        start = time.monotonic()
        _run_openrlhf(plan, lock, console)
        _write_result(plan, wall_seconds=time.monotonic() - start)
    return plan.folder.last


def _check_settings(plan: RlPlan) -> None:
    """Refuse to resume from checkpoints of other settings; else record the plan's."""
    folder = plan.folder
    has_checkpoints = folder.checkpoints.is_dir() and folder.settings.is_file()
    if has_checkpoints and recorded_digest(folder.settings) != plan.digest:
        raise RecipeError(
            f"{folder.root}: holds checkpoints of another rl section, export or prompts; give those again to go on, or "
            "move the folder away to start anew"
        )
    write_json_atomically(folder.settings, {"settings_sha256": plan.digest})


def _write_prompts(plan: RlPlan, console: Console) -> None:
    for name, count in plan.prompts_in_test_sets.items():
        console.print(f"{count} of {plan.prompts} prompts are in {name}, too", highlight=False)
    for name, text in plan.prompt_files.items():
        write_text_atomically(plan.folder.root / name, text)


def _run_openrlhf(plan: RlPlan, lock: int, console: Console) -> None:
    environment = _environment(plan, console)
    with openrlhf_process(plan.command_line, plan.folder, environment, lock) as process:
        _show_progress(process, plan, console)
    if not process.returncode:
        return
    records = read_records(plan.folder.metrics)
    if plan.rl.alarm.stop and records and "alarm" in records[-1]:
        raise TrainingHalted(
            f"{plan.stage}: stopped at step {records[-1]['step']}: {records[-1]['alarm']}; its checkpoint is kept: "
            f"look at {plan.folder.root}, and go on with -s rl.alarm.stop=false"
        )
    log = plan.folder.log
    last_lines = "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
    raise RuntimeSetupError(
        f"{plan.stage}: OpenRLHF ended with status {process.returncode}; all of it is in {log}:\n{last_lines}"
    )


def _environment(plan: RlPlan, console: Console) -> dict[str, str]:
    """The environment variables of OpenRLHF's driver. Prints which variables it does not get, and what is exposed."""
    session = Session(rl=plan.rl, folder=plan.folder)
    environment = driver_environment() | session.to_environment() | {SLOTS: str(plan.gpus)}
    if names := left_out():
        console.print(
            f"not passed on to OpenRLHF: {', '.join(names)}; name them in {EXTRA_VARIABLES} if it needs them",
            highlight=False,
            soft_wrap=True,
        )
    if plan.rl.ray_address is None:
        keep_on_this_machine(environment)
        use_own_extensions(environment)
    else:
        console.print(
            f"Ray at {plan.rl.ray_address} was not started by this run: its processes listen on every interface of "
            "their hosts, and whoever reaches them can run code there. Close its ports to other hosts by a firewall, "
            "or start it with RAY_AUTH_MODE=token.",
            highlight=False,
            soft_wrap=True,
        )
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return environment


def _show_progress(process: "subprocess.Popen[bytes]", plan: RlPlan, console: Console) -> None:
    """Show each rollout step as it ends, until the process ends: a bar on a terminal, else a line a step."""
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=18),
        TextColumn("{task.completed}/{task.total}  {task.fields[line]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    title, shown = f"rl {plan.stage}", 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=plan.steps, line="Ray, DeepSpeed and vLLM start")
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            for record in read_records(plan.folder.metrics)[shown:]:
                shown += 1
                if not record.keys() >= _SHOWN:
                    continue
                progress.update(task, completed=record["step"], line=_line(record))
                if not console.is_terminal:
                    console.print(f"{title} {record['step']:>4}/{plan.steps}  {_line(record)}", soft_wrap=True)


def _line(record: dict[str, Any]) -> str:
    alarm = f"ALARM: {record['alarm']}  " if "alarm" in record else ""
    return (
        f"{alarm}reward {record['reward']:.3f}  right {100 * record['accuracy']:.1f}%  "
        f"length {record['response_length']:.0f}  cut {100 * record['truncated_share']:.0f}%"
    )


def _write_result(plan: RlPlan, wall_seconds: float) -> None:
    """Write `result.json`, whose presence means that the run is complete."""
    records = read_records(plan.folder.metrics)
    result = {
        "settings_sha256": plan.digest,
        "steps": records[-1].get("step") if records else 0,
        "mean_response_length": records[-1].get("response_length") if records else None,
        "wall_seconds": wall_seconds,
        "prompts": plan.prompts,
        "prompts_in_test_sets": dict(plan.prompts_in_test_sets),
        "best": publish_best(plan.folder),
    }
    write_json_atomically(plan.folder.result, result)
