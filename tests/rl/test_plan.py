"""The plan of an RL run: made without writing anything, and known by what decides what is learned."""

import json
from dataclasses import FrozenInstanceError

import pytest

from megatron_octo.data.tokenizer import load_tokenizer
from megatron_octo.errors import RecipeError, RuntimeSetupError
from megatron_octo.recipe import load_recipe
from megatron_octo.rl import plan as plan_module
from megatron_octo.rl.plan import MAY_CHANGE, plan_run, settings_digest
from megatron_octo.runtime.files import write_json_atomically
from megatron_octo.runtime.run_folder import RunFolder
from tests.rl.runs import RL, needs_rl
from tests.support import MINI, files_under

PROMPTS = 11


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose stage `stable` looks exported: a plan reads the model's tokenizer and the export's digest."""
    folder = RunFolder(tmp_path / "runs/mini")
    model = folder.exported("stable")
    load_tokenizer(load_recipe(str(MINI)).model, model)
    (model / "config.json").write_text("{}")
    rows = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(PROMPTS)]
    (tmp_path / "problems.json").write_text(json.dumps(rows))
    monkeypatch.setattr(plan_module, "checked_export", lambda folder, way_out: "0a")
    monkeypatch.setattr(plan_module, "check_gpus", lambda rl, needed: None)
    return folder


def planned(run, *settings):
    prompts = f"rl.prompts={{kind: file, path: {run.root.parents[1] / 'problems.json'}}}"
    return plan_run(load_recipe(str(MINI), [RL, prompts, *settings]), run, "stable")


@needs_rl
def test_a_plan_says_what_is_started_and_writes_nothing(run):
    before = files_under(run.root)
    plan = planned(run, "rl.episodes=3", "rl.check_sync=false")
    assert files_under(run.root) == before
    assert (plan.stage, plan.steps, plan.prompts, plan.gpus) == ("stable", 3 * (PROMPTS // 4), 8, 2)
    assert not plan.is_complete
    assert list(plan.prompt_files) == ["prompts.jsonl"]
    assert len(plan.prompt_files["prompts.jsonl"].splitlines()) == 8
    assert f"--data.prompt_dataset={run.rl('stable').prompts}" in plan.command_line
    with pytest.raises(FrozenInstanceError):
        plan.steps = 1


@needs_rl
def test_a_complete_run_is_planned_without_a_look_for_gpus(run, monkeypatch):
    plan = planned(run)
    write_json_atomically(run.rl("stable").result, {"settings_sha256": plan.digest})

    def refuse(rl, needed):
        raise RuntimeSetupError("no GPUs")

    monkeypatch.setattr(plan_module, "check_gpus", refuse)
    assert planned(run).is_complete
    with pytest.raises(RuntimeSetupError):
        planned(run, "rl.seed=1")


@needs_rl
def test_too_few_prompts_for_one_step_are_refused(run):
    settings = ("rl.prompts_per_step=12", "rl.mini_batch_prompts=4")
    with pytest.raises(RecipeError, match=r"rl.prompts_per_step = 12: there are 11 prompts, which is not one step"):
        planned(run, *settings)


def test_the_digest_holds_what_decides_what_is_learned():
    rl = load_recipe(str(MINI), [RL]).rl
    files = {"prompts.jsonl": "{}\n"}
    digest = settings_digest(rl, "0a", files)
    assert len(digest) == 64
    changes = {"save_every": 7, "engines": 2, "micro_batch_size": 4, "fused_log_probs": False}
    assert changes.keys() <= MAY_CHANGE
    assert settings_digest(rl.model_copy(update=changes), "0a", files) == digest
    assert settings_digest(rl.model_copy(update={"seed": 1}), "0a", files) != digest
    assert settings_digest(rl, "0b", files) != digest
    assert settings_digest(rl, "0a", {"prompts.jsonl": "[]\n"}) != digest
