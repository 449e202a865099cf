import json

import pytest
from rich.console import Console

from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.report import print_summary, write_summary
from megatron_octo.runtime.checkpoints import folder_name
from megatron_octo.runtime.files import sha256_of, write_json_atomically
from megatron_octo.runtime.run_folder import RunFolder
from tests.report.made_up import finish


def _printed(summary: dict[str, object], width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        print_summary(summary, console)
    return capture.get()


def test_finished_stages_are_copied_whole(recipe: Recipe, run: RunFolder) -> None:
    result = finish(recipe, run, "stable")
    summary = write_summary(recipe, run)
    assert summary == {"recipe": "tiny", "stages": {"stable": result}}
    assert json.loads(run.summary.read_text()) == summary


def test_stages_stand_in_the_trees_order(recipe: Recipe, run: RunFolder) -> None:
    for stage in ("decay-hybrid", "decay-long", "stable"):
        finish(recipe, run, stage)
        write_summary(recipe, run)
    assert list(write_summary(recipe, run)["stages"]) == ["stable", "decay-long", "decay-hybrid"]


def test_what_other_legs_wrote_is_kept(recipe: Recipe, run: RunFolder) -> None:
    finish(recipe, run, "stable")
    summary = write_summary(recipe, run)
    summary["stages"]["stable"]["benchmarks"] = {"gsm8k": 0.1}
    summary["stages"]["decay-long"] = {"benchmarks": {"gsm8k": 0.2}}
    summary["stages"]["gone"] = {"benchmarks": {"gsm8k": 0.3}}
    summary["rl"] = {"stable": {"reward": 0.5}}
    run.summary.write_text(json.dumps(summary))
    finish(recipe, run, "decay-long", last_loss=0.9)
    again = write_summary(recipe, run)
    assert again["rl"] == {"stable": {"reward": 0.5}}
    assert again["stages"]["stable"]["benchmarks"] == {"gsm8k": 0.1}
    assert again["stages"]["stable"]["last_loss"] == 1.2
    assert again["stages"]["decay-long"]["benchmarks"] == {"gsm8k": 0.2}
    assert again["stages"]["decay-long"]["last_loss"] == 0.9
    assert again["stages"]["gone"] == {"benchmarks": {"gsm8k": 0.3}}


def test_a_stage_that_is_trained_again_loses_its_old_numbers(recipe: Recipe, run: RunFolder) -> None:
    finish(recipe, run, "stable")
    summary = write_summary(recipe, run)
    summary["stages"]["stable"]["benchmarks"] = 0.1
    run.summary.write_text(json.dumps(summary))
    run.result("stable").unlink()
    assert write_summary(recipe, run)["stages"] == {"stable": {"benchmarks": 0.1}}


def test_accuracy_is_that_of_the_checkpoint_the_stage_ends_with(recipe: Recipe, run: RunFolder) -> None:
    result = finish(recipe, run, "stable")
    manifest = run.checkpoints("stable") / folder_name(489) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    run.result("stable").write_text(json.dumps(result | {"checkpoint": manifest.parent.name}))
    run.heldout.parent.mkdir(parents=True)
    run.heldout.write_text("{}")
    of = {"checkpoint_manifest_sha256": sha256_of(manifest), "problems_sha256": sha256_of(run.heldout)}
    measured = {"accuracy": 0.25, "problems": 256, **of}
    write_json_atomically(run.heldout_result("stable"), measured)
    summary = write_summary(recipe, run)
    assert summary["stages"]["stable"]["accuracy"] == 0.25 and summary["stages"]["stable"]["problems"] == 256
    assert "held-out problems right" in _printed(summary) and "25.0%" in _printed(summary)
    manifest.write_text("{} ")  # trained again since
    assert "accuracy" not in write_summary(recipe, run)["stages"]["stable"]


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "holds a list")])
def test_a_summary_that_is_none(recipe: Recipe, run: RunFolder, text: str, message: str) -> None:
    run.root.mkdir(parents=True)
    run.summary.write_text(text)
    with pytest.raises(DataError, match=rf"summary\.json: {message}.* move it away"):
        write_summary(recipe, run)
    assert run.summary.read_text() == text


def test_a_result_that_lacks_a_key(recipe: Recipe, run: RunFolder) -> None:
    result = finish(recipe, run, "stable")
    del result["last_loss"], result["parent"]
    run.result("stable").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"result\.json: lacks last_loss, parent; remove it"):
        write_summary(recipe, run)


def test_the_table_has_a_row_a_stage(recipe: Recipe, run: RunFolder) -> None:
    finish(recipe, run, "stable")
    finish(recipe, run, "decay-short", first_loss=1.3, last_loss=0.9)
    printed = _printed(write_summary(recipe, run))
    (stable,) = [line.split() for line in printed.splitlines() if line.startswith(" stable ")]
    assert stable == ["stable", "base", "2.003M", "2e-3", ">", "2e-4", "5.500", ">", "1.200", "9,600", "5m12s"]
    (qa,) = [line.split() for line in printed.splitlines() if line.startswith(" qa ")]
    assert qa == ["qa", "1.230", "0.930"]
    (code,) = [line.split() for line in printed.splitlines() if line.startswith(" code ")]
    assert code == ["code", "1.230", "-"]  # the branch does not hold it
    assert "…" not in printed


def test_a_summary_with_gaps_is_printed_with_dashes() -> None:
    stages = {"stable": {"tokens": 10, "tokens_per_second": None}, "other": {"accuracy": 1}}
    printed = _printed({"recipe": "x", "stages": stages})
    assert [line.split() for line in printed.splitlines() if line.startswith(" stable")] == [
        ["stable", "-", "10", "-", "-", "-", "-"]
    ]


def test_nothing_is_done_yet() -> None:
    assert _printed({"recipe": "x", "stages": {}}) == "no stage is done yet\n"
