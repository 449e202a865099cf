"""`octo rl`: checks before anything starts, then OpenRLHF as a process of its own, watched from its metrics."""

import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_octo.bridge.exports import checked_export
from megatron_octo.errors import CheckpointError, DataError, RecipeError, RuntimeSetupError, TrainingHalted
from megatron_octo.reading.json_text import read_json_object
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.rl import RlSection
from megatron_octo.recipe.versions import RL_CHANGES, in_first_form
from megatron_octo.rl.arguments import OPENRLHF, command_line, gpus_of, options_of
from megatron_octo.rl.driver import alone_in, running
from megatron_octo.rl.environment import MORE, SLOTS, driver_environment, left_out
from megatron_octo.rl.parser import check_command_line
from megatron_octo.rl.prompts import Prompt, count_shared, prompt_rows, read_prompts, shared_with, short_enough
from megatron_octo.rl.saved import publish_best, settle
from megatron_octo.rl.session import Session
from megatron_octo.runtime.files import sha256_of_json, write_json_atomically, write_text_atomically
from megatron_octo.runtime.local_ray import keep_on_this_machine
from megatron_octo.runtime.records import read_lines
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.runtime.torch_extensions import use_own_extensions

_NEEDED = ("openrlhf", "ray", "deepspeed", "math-verify")
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
RESULT = "result.json"
_MAY_CHANGE = {
    "alarm", "save_every", "keep", "ray_address", "validate_every", "test_sets", "check_sync", "micro_batch_size",
    "engines", "engine_gpus", "fused_log_probs",
}  # fmt: skip
"""Keys that change nothing of what is learned: a run goes on under others."""


def train_rl(recipe: Recipe, run: RunFolder, stage: str, console: Console) -> Path:
    """Train a stage's export by the recipe's `rl` section. Returns the folder of the last model.

    What was done by the same settings from the same export is not done again, and said so; what was interrupted goes
    on from its last checkpoint.

    Raises:
        RecipeError: the recipe has no `rl` section, or one whose numbers do not fit.
        CheckpointError: the stage is not exported.
        DataError: prompts that cannot be used.
        RuntimeSetupError: packages or GPUs that are missing, another run in the folder, or OpenRLHF failed; with where
            its log is.
        TrainingHalted: the alarm ended the run.
    """
    rl = _section(recipe)
    model, folder = run.exported(stage), run.reinforced(stage)
    if not (model / "config.json").is_file():
        raise CheckpointError(f"{model}: {stage} is not exported; run `octo export {recipe.name} {stage}` first")
    _check_packages()
    on_cpu = _on_cpu()
    prompts = short_enough(read_prompts(rl.prompts, recipe, run, rl.seed), rl, model)
    steps = _check_numbers(rl, prompts)
    # a last step of fewer would leave a part of a mini-batch in the optimizer, and uneven work for the ranks
    prompts = prompts[: len(prompts) // rl.prompts_per_step * rl.prompts_per_step]
    shared = shared_with(prompts, rl.test_sets)
    options = options_of(
        rl,
        model=model,
        prompts=folder / "prompts.jsonl",
        validation=folder / "validation.jsonl" if rl.validation is not None else None,
        folder=folder,
        on_cpu=on_cpu,
    )
    check_command_line(command_line(options))
    of = {
        "rl": in_first_form({"rl": rl.model_dump(mode="json", exclude=_MAY_CHANGE)}, RL_CHANGES)["rl"],
        "export": checked_export(model, f"run `octo export {recipe.name} {stage}` again"),
    }
    files = {"prompts.jsonl": prompt_rows(prompts, rl.prompt_template, "prompts")}
    if rl.validation is not None:
        practised = {prompt.problem for prompt in prompts}
        validation = short_enough(read_prompts(rl.validation, recipe, run, rl.seed + 1, practised), rl, model)
        if overlap := count_shared(validation, practised):
            raise DataError(
                f"rl.validation: {overlap} of its {len(validation)} problems are among rl.prompts, so the best model "
                "would be chosen by what it practised; take them out of one"
            )
        files["validation.jsonl"] = prompt_rows(validation, rl.prompt_template, "validation")
    done = folder / RESULT
    digest = sha256_of_json(of | {"files": files})
    if done.is_file() and _settings_of(done) == digest:
        console.print(f"{stage}: RL is done already ({done}); skipped", highlight=False)
        return folder / "last"
    slots = gpus_of(rl, options)
    _check_gpus(rl, slots, on_cpu)
    with alone_in(folder) as lock:
        _same_run(folder, digest)
        for name, count in shared.items():
            console.print(f"{count} of {len(prompts)} prompts stand in {name}, too", highlight=False)
        for name, text in files.items():
            write_text_atomically(folder / name, text)
        settle(folder / "checkpoints", with_critic=rl.algorithm == "gae")
        done.unlink(missing_ok=True)
        start = time.monotonic()
        session = Session(rl=rl, folder=folder)
        _run(session, command_line(options), slots, steps, stage, lock, console)
        records = read_lines(folder / "metrics.jsonl")
        result = {
            "settings_sha256": digest,
            "steps": records[-1].get("step") if records else 0,
            "mean_response_length": records[-1].get("response_length") if records else None,
            "wall_seconds": time.monotonic() - start,
            "prompts": len(prompts),
            "prompts_in_test_sets": shared,
            "best": publish_best(folder, session.validation),
        }
        write_json_atomically(done, result)
    return folder / "last"


def _section(recipe: Recipe) -> RlSection:
    if recipe.rl is None:
        raise RecipeError(f"{recipe.name} has no `rl` section, so it does not say what to practise on; add one")
    return recipe.rl


def _check_packages() -> None:
    """What the hooks replace is OpenRLHF's own, so its version must be the one they know."""
    missing = []
    for package in _NEEDED:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise RuntimeSetupError(f"RL needs {', '.join(missing)}, not installed here; run `bash tools/install.sh`")
    if (found := version("openrlhf")) != OPENRLHF:
        raise RuntimeSetupError(
            f"OpenRLHF {found} is installed, and octo hooks into {OPENRLHF} alone; run `pip install --no-deps "
            f"openrlhf=={OPENRLHF}`"
        )


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _check_numbers(rl: RlSection, prompts: list[Prompt]) -> int:
    """Rollout steps of the run."""
    if len(prompts) < rl.prompts_per_step:
        raise RecipeError(
            f"rl.prompts_per_step = {rl.prompts_per_step}: there are {len(prompts)} prompts, which is not one step; "
            "lower it, or give more prompts"
        )
    if rl.prompts_per_step % rl.mini_batch_prompts:
        raise RecipeError(
            f"rl.mini_batch_prompts = {rl.mini_batch_prompts}: does not divide rl.prompts_per_step = "
            f"{rl.prompts_per_step}; give a divisor"
        )
    if (rl.mini_batch_prompts * rl.samples_per_prompt) % (rl.micro_batch_size * rl.gpus):
        raise RecipeError(
            f"rl.micro_batch_size = {rl.micro_batch_size}: a mini-batch of {rl.mini_batch_prompts} prompts x "
            f"{rl.samples_per_prompt} samples cannot be made of it on {rl.gpus} GPUs; give a divisor"
        )
    if rl.check_sync and (rl.engine_gpus > 1 or rl.openrlhf.get("ds.zero_stage") == 3):
        raise RecipeError(
            "rl.check_sync: compares whole tensors, and with rl.engine_gpus above 1 or ds.zero_stage 3 a process holds "
            "parts of them; leave it out there"
        )
    return rl.episodes * (len(prompts) // rl.prompts_per_step)


def _check_gpus(rl: RlSection, slots: int, on_cpu: bool) -> None:
    if rl.ray_address is None and on_cpu:
        return  # Ray is told of as many slots as are needed
    import ray
    import torch

    if rl.ray_address is None:
        there = torch.cuda.device_count()
    else:
        _check_answers(rl.ray_address)
        try:
            ray.init(address=rl.ray_address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(rl.ray_address, error) from None
        there = int(ray.cluster_resources().get("GPU", 0))
        ray.shutdown()
    if slots > there:
        raise RuntimeSetupError(
            f"rl asks for {slots} GPUs (rl.gpus {rl.gpus}, rl.engines {rl.engines} x rl.engine_gpus {rl.engine_gpus}), "
            f"and Ray has {there}; lower them, or share: rl.openrlhf={{train.colocate_all: true, "
            "vllm.enable_sleep: true, ds.enable_sleep: true, vllm.gpu_memory_utilization: 0.5}}"
        )


def _check_answers(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> RuntimeSetupError:
    return RuntimeSetupError(
        f"rl.ray_address = {address}: no Ray cluster answers there ({error}); start one with `ray start --head`, or "
        "leave the key out"
    )


def _same_run(folder: Path, digest: str) -> None:
    """Refuse to go on from checkpoints of other settings."""
    path = folder / "settings.json"
    if (folder / "checkpoints").is_dir() and path.is_file() and _settings_of(path) != digest:
        raise RecipeError(
            f"{folder}: holds checkpoints of another rl section, export or prompts; give those again to go on, or "
            "move the folder away to start anew"
        )
    write_json_atomically(path, {"settings_sha256": digest})


def _settings_of(path: Path) -> Any:
    way_out = "restore it from a copy, or move the folder away to start anew"
    return read_json_object(path, CheckpointError, way_out, needs=("settings_sha256",))["settings_sha256"]


def _run(session: Session, words: list[str], slots: int, steps: int, stage: str, lock: int, console: Console) -> None:
    log = session.folder / "log.txt"
    environment = driver_environment() | session.to_environment() | {SLOTS: str(slots)}
    if names := left_out():
        console.print(
            f"not passed on to OpenRLHF: {', '.join(names)}; name them in {MORE} if it needs them",
            highlight=False,
            soft_wrap=True,
        )
    if session.rl.ray_address is None:
        keep_on_this_machine(environment)
        use_own_extensions(environment)
    else:
        console.print(_OPEN_CLUSTER.format(address=session.rl.ray_address), highlight=False, soft_wrap=True)
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    environment.setdefault("VLLM_NO_USAGE_STATS", "1")
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with running(words, log, environment, lock) as process:
        _watch(process, session, steps, stage, console)
    if process.returncode:
        records = read_lines(session.metrics)
        if session.rl.alarm.stop and records and "alarm" in records[-1]:
            raise TrainingHalted(
                f"{stage}: stopped at step {records[-1]['step']}: {records[-1]['alarm']}; its checkpoint is kept: look "
                f"at {session.folder}, and go on with -s rl.alarm.stop=false"
            )
        said = "\n".join(log.read_text(errors="replace").strip().splitlines()[-15:])
        raise RuntimeSetupError(
            f"{stage}: OpenRLHF ended with status {process.returncode}; all of it is in {log}:\n{said}"
        )


_OPEN_CLUSTER = (
    "Ray at {address} is not of this run: its processes listen on every interface of their hosts, and whoever reaches "
    "them can run code there. Close its ports to other hosts by a firewall, or start it with RAY_AUTH_MODE=token."
)


def _watch(process: "subprocess.Popen[bytes]", session: Session, steps: int, stage: str, console: Console) -> None:
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=18),
        TextColumn("{task.completed}/{task.total}  {task.fields[line]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    shown = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"rl {stage}", total=steps, line="Ray, DeepSpeed and vLLM start")
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            for record in read_lines(session.metrics)[shown:]:
                shown += 1
                if not record.keys() >= _SHOWN:
                    continue
                progress.update(task, completed=record["step"], line=_line(record))
                if not console.is_terminal:
                    console.print(f"rl {stage} {record['step']:>4}/{steps}  {_line(record)}", soft_wrap=True)


_SHOWN = {"step", "reward", "accuracy", "response_length", "truncated_share"}


def _line(record: dict[str, Any]) -> str:
    alarm = f"  ALARM: {record['alarm']}" if "alarm" in record else ""
    return (
        alarm.strip()
        + "  " * bool(alarm)
        + (
            f"reward {record['reward']:.3f}  right {100 * record['accuracy']:.1f}%  "
            f"length {record['response_length']:.0f}  cut {100 * record['truncated_share']:.0f}%"
        )
    )
