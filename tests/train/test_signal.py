"""SLURM's warning before a time limit: the step is finished, saved, and the rank ends well, however often it comes."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from megatron_octo.runtime.checkpoints import complete_steps
from tests.support import MINI, lines


@pytest.mark.slow
def test_sigusr1_again_and_again(workplace):
    """As Python ends it takes its handlers away: a signal that came then once killed the rank, and failed the job."""
    folder = workplace("warned")
    stage, log = folder / "runs/mini/stages/stable", folder / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), "stable", "-s", "stages.stable.tokens=1M"]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | as_rank, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 120
        metrics = stage / "metrics.jsonl"
        while not metrics.is_file() or len(lines(metrics)) < 3:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        while process.poll() is None:
            assert time.monotonic() < end, log.read_text()
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    last = lines(metrics)[-1]["step"]
    assert f"stopped at step {last} of" in log.read_text()
    assert complete_steps(stage / "checkpoints")[-1] == last
