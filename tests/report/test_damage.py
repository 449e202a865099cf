"""Files of a run that are JSON, but not what their writers leave: told by a message of ours, or passed over by line."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.report import draw_curves, print_status, print_summary, stage_states, write_summary
from megatron_octo.report.rl_curves import draw_rl_curves
from megatron_octo.report.rows import read_steps, read_validation
from megatron_octo.runtime.checkpoints import folder_name
from megatron_octo.runtime.files import sha256_of
from megatron_octo.runtime.run_folder import RunFolder
from tests.report.made_up import finish, step_row, train

ODD_LINES = [
    "{}", '{"step": 1}', '{"step": "a"}', '{"step": "2"}', '{"step": 2.5}', '{"step": true}', '{"step": null}',
    '{"step": 1e400}', '{"step": NaN}', '{"step": -1}', '{"step": 1' + "0" * 100 + "}", '{"step": [1]}',
    '{"loss": "x"}', '{"loss": []}', '{"loss": true}', '{"loss": 1e300}', '{"loss": 1' + "0" * 400 + "}",
    '{"lr": "x"}', '{"lr": NaN}', '{"lr": Infinity}', '{"lr": null}', '{"tokens": {}}', '{"tokens": 1e400}',
    '{"stage_tokens": "x"}', '{"source": 5}', '{"accuracy": "x"}', '{"entropy": {}}',
]  # fmt: skip
HUGE = "1" + "0" * 30


def whole_and(path: Path, row: dict[str, Any], odd: str, alone: bool) -> None:
    """A good line, the odd one, alone or made of a good one, and a good line."""
    text = odd if alone else json.dumps(row | json.loads(odd))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([json.dumps(row | {"step": 1}), text, json.dumps(row | {"step": 3})]) + "\n")


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("odd", ODD_LINES)
def test_an_odd_line_is_passed_over(recipe: Recipe, run: RunFolder, odd: str, alone: bool) -> None:
    (key,) = json.loads(odd) or [""]
    good = step_row(recipe, "stable", 2, 2.0)
    point = {"step": 2, "stage_tokens": 2, "tokens": 2, "source": "web", "loss": 2.0}
    rollout = {"step": 2, "accuracy": 0.5, "entropy": 0.1}
    whole_and(run.metrics("stable"), good, odd, alone)
    whole_and(run.validation("stable"), point, odd, alone)
    whole_and(run.rl("stable").metrics, rollout, odd, alone)
    is_whole = not alone and odd == "{}"
    assert [row.step for row in read_steps(run.metrics("stable"))] == (
        [1, 2, 3] if is_whole or (not alone and key not in good) else [1, 3]
    )
    assert [row.step for row in read_validation(run.validation("stable"))] == (
        [1, 2, 3] if is_whole or (not alone and key not in point) else [1, 3]
    )
    assert stage_states(recipe, run)[0].step == 3


@pytest.mark.parametrize("odd", ["{}", '{"step": 1}', '{"step": "a"}', '{"loss": "x"}', '{"accuracy": "x"}'])
def test_pages_of_odd_lines_alone(recipe: Recipe, run: RunFolder, odd: str) -> None:
    for path in (run.metrics("stable"), run.validation("stable"), run.rl("stable").metrics):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(odd + "\n")
    print_status(recipe, run, Console(quiet=True))
    assert draw_curves(recipe, run, run.curves).is_file()
    assert draw_rl_curves(run, "stable") is None or odd == '{"step": 1}'


def test_a_loss_that_is_not_finite_keeps_its_step(recipe: Recipe, run: RunFolder) -> None:
    for loss in (None, math.nan, math.inf):
        run.metrics("stable").parent.mkdir(parents=True, exist_ok=True)
        run.metrics("stable").write_text(json.dumps(step_row(recipe, "stable", 1, 1.0) | {"loss": loss}) + "\n")
        (row,) = read_steps(run.metrics("stable"))
        assert row.step == 1 and math.isnan(row.loss)


def test_the_largest_numbers_that_are_read_are_drawn(recipe: Recipe, run: RunFolder) -> None:
    row = step_row(recipe, "stable", 1, 1e30) | {"tokens": 2**63 - 1, "stage_tokens": 2**63 - 1, "lr": 1e30}
    run.metrics("stable").parent.mkdir(parents=True)
    run.metrics("stable").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2, "loss": -1e30}) + "\n")
    assert len(read_steps(run.metrics("stable"))) == 2
    assert draw_curves(recipe, run, run.curves).is_file()
    print_status(recipe, run, Console(quiet=True))


def report(recipe: Recipe, run: RunFolder) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        print_summary(write_summary(recipe, run), console)
        print_status(recipe, run, console)
    return capture.get()


def altered(path: Path, changes: str) -> None:
    whole = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in whole.items() if f'"{key}":' not in changes}
    path.write_text("{" + ", ".join([json.dumps(kept)[1:-1]] * bool(kept) + [changes[1:-1]]) + "}")


RESULTS = [
    '{"last_loss": "x"}', '{"first_lr": []}', '{"tokens": []}', '{"tokens": "5"}', '{"tokens": true}',
    '{"tokens": 1.5}', '{"tokens": -1}', '{"tokens": 1e400}', '{"tokens": NaN}', '{"steps": null}',
    '{"parent": 1}', '{"parent": null}', '{"validation_loss": 1}', '{"validation_loss": {"web": "x"}}',
    '{"validation_loss": ["web"]}', '{"parent_validation_loss": 3}', '{"wall_seconds": {}}', '{"wall_seconds": -5}',
    '{"wall_seconds": 1e300}', f'{{"wall_seconds": {HUGE}}}', '{"tokens_per_second": "x"}', '{"checkpoint": 5}',
    '{"checkpoint": "../../elsewhere"}', f'{{"checkpoint": "{"x" * 5000}"}}',
]  # fmt: skip


@pytest.mark.parametrize("changes", RESULTS)
def test_results(recipe: Recipe, run: RunFolder, changes: str) -> None:
    finish(recipe, run, "stable")
    altered(run.result("stable"), changes)
    with pytest.raises(DataError, match=r"stable/result\.json: .*; remove it and run `octo train` to finish"):
        report(recipe, run)


@pytest.mark.parametrize("checkpoint", [folder_name(489), None])
def test_a_result_of_an_early_release_is_read(recipe: Recipe, run: RunFolder, checkpoint: str | None) -> None:
    result = finish(recipe, run, "stable") | {"validation_loss": None, "first_loss": None, "mine": {"is": ["kept"]}}
    run.result("stable").write_text(json.dumps(result | ({} if checkpoint is None else {"checkpoint": checkpoint})))
    run.evaluation("stable").mkdir(parents=True)
    run.heldout_result("stable").write_text('{"accuracy": 1, "problems": 2}')
    assert "2.003M" in report(recipe, run)


SUMMARIES = [
    '{"stages": null}', '{"stages": []}', '{"stages": {"stable": 5}}', '{"stages": {"stable": {"tokens": []}}}',
    '{"stages": {"gone": {"parent": 1}}}', '{"stages": {"gone": {"wall_seconds": {}}}}', '{"rl": "x"}',
    '{"rl": null}', '{"rl": {"gone": 1}}', '{"rl": {"gone": {"mean_response_length": "x"}}}', '{"rl": [1]}',
    '{"rl": {"gone": {"wall_seconds": "x"}}}', '{"rl": {"gone": {"accuracy_before": {}}}}', '{"recipe": 5}',
    '{"stages": {"gone": {"validation_loss": {"web": "x"}}}}', f'{{"rl": {{"gone": {{"wall_seconds": {HUGE}}}}}}}',
]  # fmt: skip


@pytest.mark.parametrize("changes", SUMMARIES)
def test_summaries(recipe: Recipe, run: RunFolder, changes: str) -> None:
    finish(recipe, run, "stable")
    write_summary(recipe, run)
    altered(run.summary, changes)
    before = run.summary.read_text()
    with pytest.raises(DataError, match=r"summary\.json: .*; move it away and run this again"):
        report(recipe, run)
    assert run.summary.read_text() == before


def test_a_summary_that_an_early_release_wrote_is_read(recipe: Recipe, run: RunFolder) -> None:
    finish(recipe, run, "stable")
    old = {"stages": {"stable": {"tokens": 5, "benchmarks": {"gsm8k": 1}}, "gone": {"last_loss": None, "x": [1]}}}
    run.summary.write_text(json.dumps(old | {"written_by": "0.1"}))
    summary = write_summary(recipe, run)
    assert summary["written_by"] == "0.1" and summary["stages"]["gone"] == {"x": [1]}
    assert summary["stages"]["stable"]["benchmarks"] == {"gsm8k": 1}


RL = [
    ("result.json", '{"mean_response_length": "x"}'), ("result.json", '{"steps": {}}'),
    ("result.json", '{"wall_seconds": []}'), ("result.json", f'{{"wall_seconds": {HUGE}}}'),
    ("result.json", '{"prompts": 1e400}'), ("heldout.json", '{"accuracy_before": "x"}'),
    ("heldout.json", '{"accuracy_after": {}}'), ("heldout.json", '{"problems": "x"}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), RL)
def test_rl(recipe: Recipe, run: RunFolder, name: str, changes: str) -> None:
    finish(recipe, run, "stable")
    folder = run.rl("stable").root
    altered(folder / "result.json", '{"steps": 3, "mean_response_length": 12.5, "wall_seconds": 9}')
    altered(folder / "heldout.json", '{"accuracy_before": 0.25, "accuracy_after": 1, "problems": 4}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "accuracy": 0.5}\n{"step": 2, "entropy": null}\n')
    assert "25.0% to 100.0%" in report(recipe, run) and draw_rl_curves(run, "stable") == folder / "curves.png"
    altered(folder / name, changes)
    with pytest.raises(DataError, match=rf"rl/stable/{name}: .*; remove it and run `octo rl` again"):
        report(recipe, run)
    if name == "heldout.json":
        with pytest.raises(DataError, match=r"heldout\.json: .*; remove it and run `octo rl` again"):
            draw_rl_curves(run, "stable")


@pytest.mark.parametrize(
    "changes", ['{"accuracy": "x"}', '{"accuracy": null}', '{"problems": {}}', '{"problems": 1.5}']
)
def test_heldout_answers(recipe: Recipe, run: RunFolder, changes: str) -> None:
    result = finish(recipe, run, "stable") | {"checkpoint": folder_name(489)}
    run.result("stable").write_text(json.dumps(result))
    manifest = run.checkpoints("stable") / folder_name(489) / "manifest.json"
    for path in (manifest, run.heldout):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    path = run.heldout_result("stable")
    of = {"checkpoint_manifest_sha256": sha256_of(manifest), "problems_sha256": sha256_of(run.heldout)}
    altered(path, json.dumps({"accuracy": 0.25, "problems": 4} | of))
    assert "25.0%" in report(recipe, run)
    altered(path, changes)
    with pytest.raises(DataError, match=r"heldout\.json: .*; remove it and run `octo heldout` again"):
        report(recipe, run)


def test_names_that_look_like_markup_are_shown_as_they_are(recipe: Recipe, run: RunFolder) -> None:
    result = finish(recipe, run, "stable") | {"parent": "[/bold]", "validation_loss": {"[/red]": 1.0}}
    run.result("stable").write_text(json.dumps(result))
    run.summary.write_text('{"rl": {"[/dim]": {"steps": 1}}}')
    shown = report(recipe, run)
    assert "[/bold]" in shown and "[/red]" in shown and "[/dim]" in shown


@pytest.mark.parametrize("tokens", ['"x"', "-1", "1e400", "true", "[]", "null"])
def test_manifests_on_the_status_page(recipe: Recipe, run: RunFolder, tokens: str) -> None:
    run.source("web").mkdir(parents=True)
    (run.source("web") / "manifest.json").write_text(f'{{"train": {{"tokens": {tokens}}}}}')
    (line,) = [line for line in report(recipe, run).splitlines() if line.startswith(" web ")]
    assert line.split()[2:4] == ["prepared", "-"]


KEYS = ("tokens", "steps", "first_lr", "last_loss", "validation_loss", "parent", "wall_seconds", "tokens_per_second")
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.sampled_from([*KEYS, "web", "stable"]), below),
    max_leaves=5,
)
FUZZ = settings(max_examples=150, deadline=10_000, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.sampled_from(["result", "summary", "rl"]), st.dictionaries(st.sampled_from([*KEYS, "stages", "rl"]), VALUES))
def test_any_values_are_reported_or_refused(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, which: str, changes: dict[str, Any]
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("fuzzed"))
    result = finish(recipe, run, "stable")
    path = {"result": run.result("stable"), "summary": run.summary, "rl": run.rl("stable").result}
    path[which].parent.mkdir(parents=True, exist_ok=True)
    path[which].write_text(json.dumps((result if which == "result" else {}) | changes))
    with contextlib.suppress(DataError):
        report(recipe, run)


LINE_KEYS = ("step", "stage_tokens", "tokens", "loss", "lr", "source")


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(LINE_KEYS), VALUES | st.integers(0, 9), min_size=4), max_size=5))
def test_any_lines_are_rows_or_passed_over(
    recipe: Recipe, tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]]
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("fuzzed"))
    train(recipe, run, "stable", 5.5, 1.25, steps=3)
    for path in (run.metrics("stable"), run.validation("stable")):
        with open(path, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    stage_states(recipe, run)
    read_validation(run.validation("stable"))
