"""examples/rl.sh on a real SLURM: Ray on the job's node, and `octo rl` requeued and resumed."""

import json
import os
import time

import pytest

from tests.rl.runs import RL, WIDER, gone, needs_rl
from tests.support import MINI, ROOT, lines, octo

pytestmark = [
    needs_rl,
    pytest.mark.slow,
    pytest.mark.skipif("OCTO_LONG_TESTS" not in os.environ, reason="takes four minutes: OCTO_LONG_TESTS=1 runs it"),
]


def test_a_run_is_requeued_and_resumes(cluster, workplace):
    folder = workplace("rl")
    octo("train", str(MINI), "stable", *WIDER, cwd=folder)
    octo("export", str(MINI), "stable", *WIDER, cwd=folder)
    run, log = folder / "runs/mini/rl/stable", folder / "log.txt"
    words = ["--nodes=1", "--gpus-per-node=2", "--cpus-per-task=8", "--time=60", f"--output={log}"]
    job = cluster.submit(
        *words, str(ROOT / "examples/rl.sh"), str(MINI), "stable", *WIDER, "-s", RL,
        OCTO_RUNS=str(folder / "runs"), OCTO_HOME=str(ROOT), OCTO_RAY_GPUS="2",
    )  # fmt: skip
    end = time.monotonic() + 240
    while not (run / "checkpoints/whole/global_step1").exists():
        assert time.monotonic() < end and cluster.state(job) in ("PENDING", "RUNNING"), log.read_text()
        time.sleep(0.2)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 300) == "COMPLETED", log.read_text()
    assert "Restarts=1 " in cluster.run("scontrol", "show", "job", job), log.read_text()
    assert json.loads((run / "result.json").read_text())["steps"] == 3
    assert [record["step"] for record in lines(run / "metrics.jsonl")] == [1, 2, 3]
    assert gone(run)
