"""`octo train` as ranks that srun or torchrun started: the stages of one call, each at a layout of its own."""

import os
import socket
import subprocess
import sys

import pytest

from tests.support import MINI, lines, octo

LAYOUTS = ["-s", "parallel.pipeline=2", "-s", "stages.decay.parallel={data: 2}"]


def run_ranks(folder, *arguments):
    """Two ranks of `octo train mini`: their exit statuses and their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), *LAYOUTS, *arguments],
            cwd=folder,
            env=os.environ | meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], outputs


@pytest.mark.slow
def test_stages_of_two_layouts_in_one_call_and_again(workplace):
    folder = workplace("ranks")
    statuses, outputs = run_ranks(folder, "--stop-after-step", "8")
    assert statuses == [0, 0], outputs
    assert "stopped at step 8 of 20" in outputs[0] and "Traceback" not in outputs[1]
    statuses, outputs = run_ranks(folder)
    assert statuses == [0, 0], outputs
    assert "resumes after step 8" in outputs[0] and "branches off stable" in outputs[0]
    for stage in ("stable", "decay"):
        assert (folder / f"runs/mini/stages/{stage}/result.json").is_file()
        assert not (folder / f"runs/mini/stages/{stage}/running.json").exists()
    launched = workplace("launched")
    octo("train", str(MINI), "stable", *LAYOUTS[:2], cwd=launched)
    losses = [[r["loss"] for r in lines(f / "runs/mini/stages/stable/metrics.jsonl")] for f in (folder, launched)]
    assert losses[0] == losses[1]
    statuses, outputs = run_ranks(folder)
    assert statuses == [0, 0] and outputs[0].count("already trained") == 2 and outputs[1].count("already trained") == 0


@pytest.mark.slow
def test_a_refusal_on_the_first_rank_ends_both_with_the_message(workplace):
    folder = workplace("refused")
    (folder / "runs/mini/data/tokenizer/tokenizer.json").write_text("{")
    statuses, outputs = run_ranks(folder)
    assert statuses == [2, 2], outputs
    assert all("tokenizer.json" in output and "Traceback" not in output for output in outputs)
