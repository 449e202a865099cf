"""When a rank is killed, hangs or fails, the message names the cause, the rank and the way out."""

import os
import signal
import time

import pytest

from megatron_octo.recipe.train import Guards
from megatron_octo.runtime.checkpoints import complete_steps
from megatron_octo.runtime.hang_watch import HangWatch
from tests.train.running import training

EVERY = "train.checkpointing={every_steps: 5, keep: 3}"


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGKILL), (0, signal.SIGSEGV)])
def test_a_rank_that_is_killed_is_named(workplace, rank, number):
    with training(workplace("killed"), EVERY) as run:
        run.wait_for_save()
        run.ranks()[rank].send_signal(number)
        assert run.end() == 128 + number, run.said
        assert f"rank {rank} (process" in run.said and f"was killed by {number.name}" in run.said
        assert ("memory runs out" in run.said) == (number == signal.SIGKILL)
        assert "run the same command again" in run.said
        assert "Traceback" not in run.said  # the other rank's, about the connection that it lost
        assert complete_steps(run.checkpoints)


@pytest.mark.slow
def test_a_hang_ends_with_the_stacks_of_the_ranks(workplace):
    limits = ["train.guards.hang_seconds=2", "train.guards.hang_factor=2"]
    with training(workplace("hung"), EVERY, *limits) as run:
        run.wait_for_step(8)
        run.ranks()[1].send_signal(signal.SIGSTOP)  # rank 0 waits for it in a collective
        start = time.monotonic()
        assert run.end() == 1, run.said
        assert time.monotonic() - start < 60
        assert "a step took longer than its limit" in run.said
        assert "rank 0: Timeout" in run.said and "loop.py" in run.said
        assert "rank 1: no stack" in run.said
        assert "raise train.guards.hang_seconds" in run.said


def test_limits_of_a_hang(monkeypatch, tmp_path):
    monkeypatch.setenv("OCTO_RANK_FOLDER", str(tmp_path))
    watch = HangWatch(Guards(hang_seconds=2.0, hang_factor=10.0), rank=0)
    assert watch.step_limit == 20.0  # the first step compiles and connects
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds in (0.05, 0.1, 3.0):
        watch.begin_step()
        now[0] += seconds
        watch.end_step()
    watch.stop()
    assert watch.step_limit == 30.0  # ten times the slowest of the recent steps
    watch.recent.pop()
    assert watch.step_limit == 2.0  # never less than hang_seconds
    assert watch.other_limit == 20.0


@pytest.mark.slow
def test_a_full_disk_is_a_message(workplace):
    """A file that may not grow any more stands for it: the same OSError on the same road."""
    folder = workplace("full")
    with training(folder, EVERY) as run:
        run.wait_for_save()
        import resource

        for rank in run.ranks():
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        status = run.end()
        assert status == 2
        assert "the checkpoint could not be written (Worker failure: " in run.said, run.said
        assert "make room on that disk" in run.said and "Traceback" not in run.said
        assert complete_steps(run.checkpoints)


def test_a_folder_that_cannot_be_written(workplace):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    folder = workplace("readonly")
    (folder / "runs/mini").chmod(0o500)
    with training(folder) as run:
        assert run.end() == 2
        assert "Permission denied; change its permissions" in run.said and "Traceback" not in run.said
