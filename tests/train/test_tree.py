"""A stage and its branch, end to end, and the second time."""

import json
import shutil
from itertools import pairwise

import pytest

from megatron_octo.recipe import load_recipe
from megatron_octo.recipe.tokens import format_tokens
from tests.support import MINI, lines, octo


@pytest.fixture(scope="module")
def done(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(prepared / "runs", folder / "runs")
    first = octo("train", str(MINI), cwd=folder)
    second = octo("train", str(MINI), cwd=folder)
    return folder, first.stdout, second.stdout


def test_every_stage_is_summed_up(done):
    folder, _, _ = done
    stages = json.loads((folder / "runs/mini/summary.json").read_text())["stages"]
    assert list(stages) == ["stable", "decay"]
    keys = {
        "tokens", "first_lr", "last_lr", "first_loss", "last_loss", "validation_loss", "parent", "wall_seconds",
    }  # fmt: skip
    assert all(keys <= stage.keys() for stage in stages.values())
    assert stages["stable"]["tokens"] == 10240 and stages["decay"]["parent"] == "stable"
    assert stages["decay"]["validation_loss"].keys() == {"web", "qa"}


def test_the_branch_begins_at_its_parents_rate_and_ends_at_the_floor(done):
    folder, _, _ = done
    stable = lines(folder / "runs/mini/stages/stable/metrics.jsonl")
    decay = lines(folder / "runs/mini/stages/decay/metrics.jsonl")
    assert {r["lr"] for r in stable} == {3e-3}
    assert decay[0]["lr"] == 3e-3 and decay[-1]["lr"] == pytest.approx(3e-4, rel=1e-12)
    assert all(after["lr"] < before["lr"] for before, after in pairwise(decay))


def test_the_branch_goes_on_from_its_parents_weights_and_moments(done):
    """Its first loss is about the parent's last, and its gradient step is no first step of a new Adam."""
    folder, _, _ = done
    stable = lines(folder / "runs/mini/stages/stable/metrics.jsonl")
    decay = lines(folder / "runs/mini/stages/decay/metrics.jsonl")
    assert decay[0]["loss"] == pytest.approx(stable[-1]["loss"], rel=0.15)
    assert decay[0]["tokens"] == stable[-1]["tokens"] + 512 and decay[0]["stage_tokens"] == 512
    lineage = json.loads((folder / "runs/mini/stages/decay/lineage.json").read_text())
    assert lineage["parent"] == "stable" and lineage["parent_step"] == 20 and lineage["parent_tokens"] == 10240


def test_tokens_are_counted_by_source(done):
    folder, _, _ = done
    records = lines(folder / "runs/mini/stages/decay/metrics.jsonl")
    totals = {name: sum(r["source_tokens"].get(name, 0) for r in records) for name in ("web", "qa")}
    assert sum(totals.values()) == 5120 and totals["qa"] == pytest.approx(0.8 * 5120, abs=64)


def test_the_second_time_everything_is_skipped(done):
    _, first, second = done
    assert "already trained" not in first
    assert second.count("already trained") == 2 and "starts from" not in second


def test_checkpoints_verify_and_curves_are_drawn(done):
    folder, first, _ = done
    checkpoints = folder / "runs/mini/stages/stable/checkpoints"
    verified = octo("checkpoint", "verify", str(checkpoints), cwd=folder)
    assert "step-0000020: intact" in verified.stdout
    assert (folder / "runs/mini/curves.png").stat().st_size > 10_000
    assert "curves.png" in first
    status = octo("status", str(MINI), cwd=folder).stdout
    assert "done" in status
    tokens = json.loads((folder / "runs/mini/data/web/manifest.json").read_text())["train"]["tokens"]
    assert format_tokens(tokens) in status  # as the data room writes it


def test_the_stored_recipe_is_the_one_that_ran(done):
    folder, _, _ = done
    assert load_recipe(str(folder / "runs/mini/recipe.yaml")) == load_recipe(str(MINI))


def test_a_finished_stage_with_other_settings_is_refused(done):
    folder, _, _ = done
    told = octo("train", str(MINI), "-s", "train.learning_rate=1e-3", cwd=folder, check=False)
    assert told.returncode == 2
    assert "train.learning_rate was 0.003, is 0.001" in told.stderr and "give the recipe another name" in told.stderr


def test_samples_can_be_looked_at(done):
    folder, _, _ = done
    shown = octo("data", "show", str(MINI), "decay", "0", "79", cwd=folder).stdout
    assert "--- sample 0, step 1, source" in shown and "--- sample 79, step 10, source" in shown
    beyond = octo("data", "show", str(MINI), "decay", "80", cwd=folder, check=False)
    assert "samples 0 to 79" in beyond.stderr


def test_asynchronous_checkpoints_are_whole_and_can_be_resumed_from(workplace):
    folder = workplace("asynchronous")
    settings = ["-s", "train.checkpointing={every_steps: 4, keep: 2, asynchronous: true}"]
    octo("train", str(MINI), "stable", *settings, "--stop-after-step", "10", cwd=folder)
    checkpoints = folder / "runs/mini/stages/stable/checkpoints"
    verified = octo("checkpoint", "verify", str(checkpoints), cwd=folder).stdout
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in verified.splitlines()] == ["step-0000008", "step-0000010"]
    resumed = octo("train", str(MINI), "stable", *settings, cwd=folder).stdout
    assert "resumes after step 10" in resumed and not list(checkpoints.glob(".step-*"))
