"""SIGKILL in the middle of a save, ten times: the next start goes on from a complete checkpoint each time."""

import contextlib
import random
import subprocess
import sys
import time

import psutil

from megatron_octo.runtime.checkpoints import complete_steps, folder_name, verify_checkpoint
from tests.support import MINI, lines, octo

KILLS = 10
OVERRIDES = ("stages.stable.tokens=1M", "train.checkpointing={every_steps: 1, keep: 3}")
ARGUMENTS = ["train", str(MINI), "stable", *(word for text in OVERRIDES for word in ("-s", text))]


def kill_in_a_save(folder, checkpoints, dice):
    """Start training, wait for a save to be under way and a random moment more, kill every process of it."""
    before = complete_steps(checkpoints)
    command = [sys.executable, "-m", "megatron_octo.cli", *ARGUMENTS]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        stale = {p.name for p in checkpoints.glob(".step-*.partial")}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            partial = {p.name for p in checkpoints.glob(".step-*.partial")}
            if partial - stale and (complete_steps(checkpoints) != before or dice.random() < 0.3):
                time.sleep(dice.uniform(0.0, 0.3))
                break
            time.sleep(0.005)
        assert process.poll() is None, (folder / "log").read_text()
    finally:
        # what ended by itself has failed, and its log says why
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for victim in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        process.wait()
    return (folder / "log").read_text()


def test_ten_kills(workplace):
    folder, dice = workplace("killed"), random.Random(0)
    checkpoints = folder / "runs/mini/stages/stable/checkpoints"
    expected, torn = None, 0
    for _ in range(KILLS):
        text = kill_in_a_save(folder, checkpoints, dice)
        assert ("starts from random weights" if expected is None else f"resumes after step {expected}") in text
        steps = complete_steps(checkpoints)
        torn += any(checkpoints.glob(".step-*.partial"))
        expected = steps[-1] if steps else None
        if expected is not None:
            verify_checkpoint(checkpoints / folder_name(expected))
    assert torn >= KILLS // 2  # the kills really came in the middle of saves
    octo(*ARGUMENTS, "--stop-after-step", str(expected + 2), cwd=folder)
    records = lines(folder / "runs/mini/stages/stable/metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, expected + 3))  # no step twice, none missing
    assert not list(checkpoints.glob(".step-*"))
