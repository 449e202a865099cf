"""The plan of an RL run: its prompts, its options for OpenRLHF, its steps. What can be refused is refused here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.bridge.exports import checked_export
from megatron_octo.errors import CheckpointError, DataError, RecipeError
from megatron_octo.reading.json_text import read_json_object
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.rl import RlSection
from megatron_octo.recipe.versions import RL_CHANGES, in_first_form
from megatron_octo.rl.arguments import command_line, gpus_needed, openrlhf_options
from megatron_octo.rl.machine import check_gpus, check_packages, has_cuda
from megatron_octo.rl.parser import check_command_line
from megatron_octo.rl.prompt_file import Prompt
from megatron_octo.rl.prompts import count_shared, prompt_rows, read_prompts, shared_with, short_enough
from megatron_octo.runtime.files import sha256_of_json
from megatron_octo.runtime.rl_folder import RlFolder
from megatron_octo.runtime.run_folder import RunFolder

MAY_CHANGE = {
    "alarm", "save_every", "keep", "ray_address", "validate_every", "test_sets", "check_sync", "micro_batch_size",
    "engines", "engine_gpus", "fused_log_probs",
}  # fmt: skip
"""Keys that do not change what is learned. A run may resume with other values of these."""


@dataclass(frozen=True)
class RlPlan:
    """An RL run that nothing speaks against, ready to be started."""

    stage: str
    rl: RlSection
    folder: RlFolder
    command_line: tuple[str, ...]
    """OpenRLHF's options."""
    gpus: int
    """GPUs that OpenRLHF takes from Ray; on a machine without CUDA, slots that Ray takes for GPUs."""
    steps: int
    """Rollout steps of the whole run."""
    prompts: int
    """Training prompts: as many as fill whole rollout steps."""
    prompts_in_test_sets: Mapping[str, int]
    """How many of them each benchmark contains, by the benchmark's name."""
    prompt_files: Mapping[str, str]
    """Content of the prompt files, by name."""
    digest: str
    """SHA-256 of everything that decides what is learned: see `settings_digest`."""
    is_complete: bool
    """Whether the folder holds the result of this very run."""


def plan_run(recipe: Recipe, run: RunFolder, stage: str) -> RlPlan:
    """Plan an RL run from a stage's export, without starting or writing anything.

    Raises:
        RecipeError: the recipe has no `rl` section, or its numbers or options cannot work.
        CheckpointError: the stage is not exported, or the export is no longer what was written.
        DataError: prompts that cannot be used.
        RuntimeSetupError: packages or GPUs are missing.
    """
    if recipe.rl is None:
        raise RecipeError(f"{recipe.name} has no `rl` section, so it does not say what to practise on; add one")
    rl, model, folder = recipe.rl, run.exported(stage), run.rl(stage)
    if not (model / "config.json").is_file():
        raise CheckpointError(f"{model}: {stage} is not exported; run `octo export {recipe.name} {stage}` first")
    check_packages()

    prompts = short_enough(read_prompts(rl.prompts, recipe, run, rl.seed), rl, model)
    _check_count(rl, prompts)
    steps_per_episode = len(prompts) // rl.prompts_per_step
    # a last step with fewer prompts would leave part of a mini-batch in the optimizer, and uneven work for the ranks
    prompts = prompts[: steps_per_episode * rl.prompts_per_step]
    in_test_sets = shared_with(prompts, rl.test_sets)

    options = openrlhf_options(rl, model=model, folder=folder, on_cpu=not has_cuda())
    words = command_line(options)
    check_command_line(words)

    export = checked_export(model, f"run `octo export {recipe.name} {stage}` again")
    files = {folder.prompts.name: prompt_rows(prompts, rl.prompt_template, "prompts")}
    if rl.validation is not None:
        validation = _validation_prompts(recipe, run, prompts, model)
        files[folder.validation_prompts.name] = prompt_rows(validation, rl.prompt_template, "validation")

    digest = settings_digest(rl, export, files)
    is_complete = folder.result.is_file() and recorded_digest(folder.result) == digest
    gpus = gpus_needed(rl, options)
    if not is_complete:
        check_gpus(rl, gpus)
    return RlPlan(
        stage=stage,
        rl=rl,
        folder=folder,
        command_line=tuple(words),
        gpus=gpus,
        steps=rl.episodes * steps_per_episode,
        prompts=len(prompts),
        prompts_in_test_sets=in_test_sets,
        prompt_files=files,
        digest=digest,
        is_complete=is_complete,
    )


def settings_digest(rl: RlSection, export: str | None, prompt_files: Mapping[str, str]) -> str:
    """SHA-256 of what decides what is learned: a run resumes, or counts as complete, only where it is the same.

    Args:
        export: SHA-256 of the manifest of the exported checkpoint.
        prompt_files: content of the prompt files, by name.
    """
    settings = in_first_form({"rl": rl.model_dump(mode="json", exclude=MAY_CHANGE)}, RL_CHANGES)
    return sha256_of_json({"rl": settings["rl"], "export": export, "files": dict(prompt_files)})


def recorded_digest(path: Path) -> Any:
    """The settings digest in a `settings.json` or `result.json`.

    Raises:
        CheckpointError: the file cannot be read, or has no digest.
    """
    way_out = "restore it from a copy, or move the folder away to start anew"
    return read_json_object(path, CheckpointError, way_out, needs=("settings_sha256",))["settings_sha256"]


def _check_count(rl: RlSection, prompts: list[Prompt]) -> None:
    """Refuse too few prompts. How many a file has is known only here; the recipe was checked for all that it says."""
    if len(prompts) < rl.prompts_per_step:
        raise RecipeError(
            f"rl.prompts_per_step = {rl.prompts_per_step}: there are {len(prompts)} prompts, which is not one step; "
            "lower it, or give more prompts"
        )


def _validation_prompts(recipe: Recipe, run: RunFolder, prompts: list[Prompt], model: Path) -> list[Prompt]:
    rl = recipe.rl
    assert rl is not None and rl.validation is not None
    practised = {prompt.problem for prompt in prompts}
    validation = short_enough(read_prompts(rl.validation, recipe, run, rl.seed + 1, practised), rl, model)
    if overlap := count_shared(validation, practised):
        raise DataError(
            f"rl.validation: {overlap} of its {len(validation)} problems are among rl.prompts, so the best model "
            "would be chosen by what it practised; take them out of one"
        )
    return validation
