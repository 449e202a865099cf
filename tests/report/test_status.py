import json
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.report import StageState, print_status, stage_states
from megatron_octo.runtime.run_folder import RunFolder
from tests.report.made_up import checkpoint, finish, step_row, train, write_lines


def _state(recipe: Recipe, run: RunFolder, name: str) -> StageState:
    return next(state for state in stage_states(recipe, run) if state.name == name)


def _claim(run: RunFolder, stage: str, **changes: object) -> None:
    claim = {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()} | changes
    run.stage(stage).mkdir(parents=True, exist_ok=True)
    (run.stage(stage) / "running.json").write_text(json.dumps(claim))


def _prepare(run: RunFolder, *sources: str) -> None:
    for source in sources:
        run.source(source).mkdir(parents=True)
        (run.source(source) / "manifest.json").write_text('{"train": {"tokens": 2900000}}')


def test_an_empty_run(recipe: Recipe, run: RunFolder) -> None:
    states = stage_states(recipe, run)
    assert [(s.name, s.parent, s.state) for s in states] == [
        ("stable", "base", "ready"),
        ("decay-long", "stable", "waiting"),
        ("decay-short", "stable", "waiting"),
        ("decay-hybrid", "stable", "waiting"),
    ]
    assert states[0] == StageState(
        name="stable",
        parent="base",
        state="ready",
        step=0,
        steps=489,
        tokens=0,
        last_loss=None,
        last_checkpoint_step=None,
        missing_sources=("web", "code", "qa"),
    )


def test_a_stage_that_is_done(recipe: Recipe, run: RunFolder) -> None:
    train(recipe, run, "stable", 5.5, 1.2)
    checkpoint(run, "stable", 489)
    finish(recipe, run, "stable")
    state = _state(recipe, run, "stable")
    assert (state.state, state.step, state.steps, state.tokens) == ("done", 489, 489, 489 * 4_096)
    assert state.last_checkpoint_step == 489
    assert [s.state for s in stage_states(recipe, run)[1:]] == ["ready"] * 3


def test_a_branch_needs_only_its_mark(run: RunFolder) -> None:
    recipe = load_recipe("tiny", ["stages.decay-long.parent.at=1M"])  # step 245
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 250, 2.0)])
    checkpoint(run, "stable", 200)
    checkpoint(run, "stable", 245, complete=False)
    assert _state(recipe, run, "decay-long").state == "waiting"
    (run.checkpoints("stable") / "step-0000245" / "manifest.json").write_text("{}")
    assert _state(recipe, run, "decay-long").state == "ready"
    assert _state(recipe, run, "decay-short").state == "waiting"


def test_an_interrupted_stage(recipe: Recipe, run: RunFolder) -> None:
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", step, 2.0) for step in (1, 2, 230)])
    checkpoint(run, "stable", 200)
    checkpoint(run, "stable", 230, complete=False)  # it died while writing this one
    (run.checkpoints("stable") / "notes").mkdir()
    state = _state(recipe, run, "stable")
    assert (state.state, state.step, state.last_checkpoint_step, state.last_loss) == ("interrupted", 230, 200, 2.0)


def test_a_running_stage(recipe: Recipe, run: RunFolder) -> None:
    _claim(run, "stable")
    assert _state(recipe, run, "stable").state == "running"


def test_a_result_outweighs_a_claim_left_behind(recipe: Recipe, run: RunFolder) -> None:
    finish(recipe, run, "stable")
    _claim(run, "stable")
    assert _state(recipe, run, "stable").state == "done"


def test_the_process_is_gone(recipe: Recipe, run: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    _claim(run, "stable", pid=process.pid)
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 1, 2.0)])
    assert _state(recipe, run, "stable").state == "interrupted"


def test_another_process_got_the_number(recipe: Recipe, run: RunFolder) -> None:
    _claim(run, "stable", started=(datetime.now(UTC) - timedelta(days=3)).isoformat())
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 1, 2.0)])
    assert _state(recipe, run, "stable").state == "interrupted"


@pytest.mark.parametrize(("age", "state"), [(60, "running"), (3600, "interrupted")])
def test_another_host_is_judged_by_its_metrics(recipe: Recipe, run: RunFolder, age: int, state: str) -> None:
    _claim(run, "stable", host="node-17", pid=1)
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 1, 2.0)])
    then = time.time() - age
    os.utime(run.metrics("stable"), (then, then))
    assert _state(recipe, run, "stable").state == state


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": "x", "host": "HOST"}'])
def test_a_claim_that_says_nothing(recipe: Recipe, run: RunFolder, text: str) -> None:
    run.stage("stable").mkdir(parents=True)
    (run.stage("stable") / "running.json").write_text(text.replace("HOST", socket.gethostname()))
    assert _state(recipe, run, "stable").state == "ready"


def test_a_loss_that_is_not_finite_is_not_quoted(recipe: Recipe, run: RunFolder) -> None:
    write_lines(run.metrics("stable"), [step_row(recipe, "stable", 1, float("nan"))])
    assert _state(recipe, run, "stable").last_loss is None


def test_the_printed_tree(recipe: Recipe, run: RunFolder) -> None:
    train(recipe, run, "stable", 5.5, 1.2)
    finish(recipe, run, "stable")
    write_lines(run.metrics("decay-long"), [step_row(recipe, "decay-long", 120, 0.987)])
    checkpoint(run, "decay-long", 100)
    _prepare(run, "web", "code", "qa")
    console = Console(width=140)
    with console.capture() as capture:
        print_status(recipe, run, console)
    printed = capture.get()
    lines = {line.split()[1]: line for line in printed.splitlines() if "──" in line and len(line.split()) > 3}
    assert "done" in lines["stable"]
    assert "interrupted  step 120 of 171" in lines["decay-long"]
    assert "loss 0.987  checkpoint at 100" in lines["decay-long"]
    assert "2 of 3 sources missing" in lines["decay-long"]  # instruction, long_cot
    assert lines["decay-long"].index("decay-long") > lines["stable"].index("stable")
    web = next(line for line in printed.splitlines() if line.startswith(" web "))
    assert web.split()[:4] == ["web", "builtin", "prepared", "2.9M"]
    instruction = next(line for line in printed.splitlines() if line.startswith(" instruction "))
    assert instruction.split()[:4] == ["instruction", "builtin", "missing", "-"]
