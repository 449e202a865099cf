"""examples/midtrain.sh and `octo data prepare --executor slurm` on a real SLURM."""

import json
import shutil
import time

import pytest

from tests.support import MINI, ROOT, octo

STEPS = 400
SAVES = "train.checkpointing={every_steps: 5, keep: 3}"
LONGER = ["-s", f"stages.stable.tokens={STEPS * 512}", "-s", "parallel.data=auto", "-s", SAVES]
ONE_NODE = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=60"]


@pytest.fixture
def submit(cluster, workplace):
    """A function that submits a stage of mini in a folder of its own. It returns the job's id."""
    folder = workplace("slurm")

    def submit_stage(stage, *slurm):
        words = [
            *ONE_NODE,
            f"--output={folder}/{stage}.txt",
            *slurm,
            str(ROOT / "examples/midtrain.sh"),
            str(MINI),
            stage,
        ]
        return cluster.submit(*words, *LONGER, OCTO_RUNS=str(folder / "runs"), OCTO_HOME=str(ROOT))

    submit_stage.folder = folder
    return submit_stage


def trained_steps(folder, stage):
    path = folder / f"runs/mini/stages/{stage}/metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.slow
def test_a_stage_is_requeued_and_its_branch_follows(cluster, submit):
    stable = submit("stable")
    decay = submit("decay", f"--dependency=afterok:{stable}", "--kill-on-invalid-dep=yes")
    end = time.monotonic() + 120
    while len(trained_steps(submit.folder, "stable")) < 20:
        assert time.monotonic() < end and cluster.state(stable) in ("PENDING", "RUNNING"), job_log(submit, "stable")
        time.sleep(0.1)
    assert cluster.state(decay) == "PENDING"
    # The process has saved several times. SLURM sends this signal before the time limit.
    cluster.run("scancel", "--batch", "--signal=USR1", stable)
    assert cluster.wait(stable) == "COMPLETED", job_log(submit, "stable")
    assert cluster.wait(decay) == "COMPLETED", job_log(submit, "decay")
    assert "Restarts=1 " in cluster.run("scontrol", "show", "job", stable), job_log(submit, "stable")
    assert trained_steps(submit.folder, "stable") == list(range(1, STEPS + 1))
    for stage in ("stable", "decay"):
        assert (submit.folder / f"runs/mini/stages/{stage}/result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", ["TERM", "INT", "USR1"])
def test_ranks_that_are_signalled_with_their_helpers_save(cluster, submit, number):
    """`scancel` without --batch signals every process of the step. Submitted again, the stage resumes bit for bit."""
    first = submit("stable")
    end = time.monotonic() + 120
    while len(trained_steps(submit.folder, "stable")) < 20:
        assert time.monotonic() < end and cluster.state(first) in ("PENDING", "RUNNING"), job_log(submit, "stable")
        time.sleep(0.1)
    cluster.run("scancel", f"--signal={number}", first)
    assert cluster.wait(first) == "FAILED", job_log(submit, "stable")  # so no branch follows
    last = trained_steps(submit.folder, "stable")[-1]
    assert f"stopped at step {last} of {STEPS}" in job_log(submit, "stable")
    assert "submit it again" in job_log(submit, "stable")
    assert cluster.wait(submit("stable")) == "COMPLETED", job_log(submit, "stable")
    assert trained_steps(submit.folder, "stable") == list(range(1, STEPS + 1))
    reference = submit.folder / "reference"
    shutil.copytree(submit.folder / "runs/mini/data", reference / "runs/mini/data")
    octo(
        "train",
        str(MINI),
        "stable",
        *LONGER,
        "-s",
        "parallel.data=2",
        "--stop-after-step",
        str(last + 5),
        cwd=reference,
    )
    assert stable_losses(submit.folder)[: last + 5] == stable_losses(reference)


def stable_losses(folder):
    path = folder / "runs/mini/stages/stable/metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def test_a_failed_stage_cancels_its_branch(cluster, submit):
    broken = submit("nothing")
    branch = submit("decay", f"--dependency=afterok:{broken}", "--kill-on-invalid-dep=yes")
    assert cluster.wait(broken) == "FAILED"
    assert "nothing" in job_log(submit, "nothing")
    assert cluster.wait(branch) == "CANCELLED"
    assert not (submit.folder / "runs/mini/stages/decay").exists()


@pytest.mark.slow
def test_data_is_prepared_by_a_job_array(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    options = ["--executor", "slurm", "--executor-option", "partition=debug", "--executor-option", "time=0:10:00"]
    octo("data", "prepare", str(MINI), "--workers", "2", *options, cwd=tmp_path)
    assert (tmp_path / "runs/mini/data").is_dir()


def job_log(submit, stage):
    path = submit.folder / f"{stage}.txt"
    return path.read_text()[-3000:] if path.is_file() else "no log"
