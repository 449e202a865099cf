"""Stop signals: the step is finished and saved, and training goes on from there bit for bit, however they come.

SIGUSR1 is SLURM's warning before a time limit. `scancel` and torchrun signal a rank's helpers too, and the launcher
forwards what it gets.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from megatron_octo.runtime.checkpoints import complete_steps
from tests.support import LOOPBACK, MINI, lines, listening, octo
from tests.train.running import HEARS_SIGNALS, LAYOUT, SECONDS, training

REFERENCE_STEPS = 60


@pytest.fixture(scope="module")
def reference(prepared, tmp_path_factory):
    """Losses of a training that nothing interrupts, step by step."""
    folder = tmp_path_factory.mktemp("reference")

    shutil.copytree(prepared / "runs", folder / "runs")
    words = [word for setting in LAYOUT for word in ("-s", setting)]
    octo("train", str(MINI), "stable", *words, "--stop-after-step", str(REFERENCE_STEPS), cwd=folder)
    return [record["loss"] for record in lines(folder / "runs/mini/stages/stable/metrics.jsonl")]


def to_launcher(run, number):
    run.process.send_signal(number)


def to_one_rank(run, number):
    run.ranks()[-1].send_signal(number)


def to_rank_groups(run, number):
    """As torchrun and `scancel` do: a rank, its writers and its helpers."""
    for rank in run.ranks():
        os.killpg(rank.pid, number)


def to_everything(run, number):
    for process in run.everything():
        process.send_signal(number)


def again_and_again(run, number):
    while run.process.poll() is None:
        for process in run.everything()[:3]:  # the launcher and its ranks
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)


def before_a_save(run):
    run.wait_for_step(3)


def after_saves(run):
    run.wait_for_save(2)
    run.wait_for_step(12)


def in_a_save(run):
    run.wait_for_save()
    run.wait_for(lambda: any(run.checkpoints.glob(".step-*.partial")))


EVERY = "train.checkpointing={every_steps: 5, keep: 3}"
ALWAYS = "train.checkpointing={every_steps: 1, keep: 3}"
LATER = "train.checkpointing={every_steps: 5, keep: 3, asynchronous: true}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "when", "send", "settings"),
    [
        (signal.SIGHUP, before_a_save, to_launcher, EVERY),
        (signal.SIGTERM, after_saves, to_launcher, EVERY),
        (signal.SIGUSR1, after_saves, to_one_rank, EVERY),
        (signal.SIGINT, after_saves, to_rank_groups, EVERY),
        (signal.SIGTERM, after_saves, to_rank_groups, LATER),
        (signal.SIGUSR1, after_saves, to_everything, EVERY),
        (signal.SIGUSR1, in_a_save, again_and_again, ALWAYS),
        (signal.SIGINT, after_saves, again_and_again, LATER),
    ],
)
def test_saved_and_resumed_bit_for_bit(workplace, reference, number, when, send, settings):
    folder = workplace("signalled")
    with training(folder, settings) as run:
        when(run)
        assert listening(run.process.pid) <= LOOPBACK
        send(run, number)
        # the launcher ends as the signal would have ended it; a rank that is signalled alone ends well
        assert run.end() in (0, 128 + number), run.said
        assert "Traceback" not in run.said
        last = run.steps[-1]
        assert run.steps == list(range(1, last + 1))
        assert f"stopped at step {last} of" in run.said, run.said
        assert complete_steps(run.checkpoints)[-1] == last, run.said
    words = [word for setting in (*LAYOUT, settings) for word in ("-s", setting)]
    until = min(last + 5, REFERENCE_STEPS)
    told = octo("train", str(MINI), "stable", *words, "--stop-after-step", str(until), cwd=folder)
    assert f"resumes after step {last}" in told.stdout
    losses = [record["loss"] for record in lines(run.stage / "metrics.jsonl")]
    assert losses[:REFERENCE_STEPS] == reference[: len(losses)]


@pytest.mark.slow
@pytest.mark.parametrize("send", [to_launcher, to_rank_groups])
def test_a_signal_while_loading(workplace, send):
    """Nothing is trained and nothing is lost; the next start begins where this one would have."""
    folder = workplace("loading")
    with training(folder) as run:
        run.wait_for(lambda: len(run.ranks()) == 2)
        send(run, signal.SIGTERM)
        assert run.end() in (0, 128 + signal.SIGTERM), run.said
        assert "Traceback" not in run.said
        assert "stopped before step 1" in run.said
        assert not complete_steps(run.checkpoints)
    told = octo("train", str(MINI), "stable", "-s", LAYOUT[0], "-s", LAYOUT[1], "--stop-after-step", "2", cwd=folder)
    assert "starts from random weights" in told.stdout


@pytest.mark.slow
def test_a_terminal_that_is_gone_ends_no_training(workplace):
    """Printing then fails, and the checkpoint is written all the same."""
    folder = workplace("gone")
    words = [word for setting in (*LAYOUT, EVERY) for word in ("-s", setting)]
    command = [*HEARS_SIGNALS, sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), "stable", *words]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stage = folder / "runs/mini/stages/stable"
    try:
        end = time.monotonic() + SECONDS
        while not complete_steps(stage / "checkpoints"):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        process.wait(SECONDS)
    finally:
        process.kill()
    steps = [record["step"] for record in lines(stage / "metrics.jsonl")]
    assert complete_steps(stage / "checkpoints")[-1] == steps[-1]


@pytest.mark.slow
def test_ranks_whose_launcher_is_killed_save_and_stop(workplace):
    """Nobody watches them any more; another start would wait for them in vain."""
    with training(workplace("orphaned"), EVERY) as run:
        run.wait_for_save()
        ranks = run.ranks()
        run.process.kill()
        _, left = psutil.wait_procs(ranks, timeout=SECONDS)
        assert not left
        assert complete_steps(run.checkpoints)[-1] == run.steps[-1]


@pytest.mark.slow
def test_a_process_that_is_a_rank_itself(workplace):
    """As under srun: signalled again and again, also while Python ends, it ends well, so its job is requeued."""
    folder = workplace("warned")
    stage, log = folder / "runs/mini/stages/stable", folder / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), "stable", "-s", LAYOUT[1], "-s", EVERY]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | as_rank, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + SECONDS
        while not complete_steps(stage / "checkpoints"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        assert listening(process.pid) <= LOOPBACK
        while process.poll() is None:
            assert time.monotonic() < end, log.read_text()
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    last = lines(stage / "metrics.jsonl")[-1]["step"]
    assert f"stopped at step {last} of" in log.read_text()
    assert complete_steps(stage / "checkpoints")[-1] == last


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_in_a_batch_script_is_no_rank(workplace, number):
    """SLURM_PROCID is there with one task too. A signal before any rank is started ends `octo train`."""
    folder = workplace("batch")
    as_task = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    command = [*HEARS_SIGNALS, sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), "stable", "-s", LAYOUT[1]]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | as_task, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(1.0)  # it imports
    process.send_signal(number)
    try:
        assert process.wait(SECONDS) != 0
    finally:
        process.kill()
    assert not (folder / "runs/mini/stages/stable/result.json").exists()
