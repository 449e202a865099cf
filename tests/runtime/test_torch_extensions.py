"""Locks of PyTorch's run-time builds: those of a build that was killed go, those of one that runs stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_octo.runtime.torch_extensions import VARIABLE, remove_abandoned_locks, use_own_extensions

_BUILD = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(600)
"""


@pytest.fixture
def build(tmp_path):
    """A build that holds PyTorch's own lock."""
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", _BUILD, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        yield process, lock
        process.kill()


def test_a_lock_stays_while_its_build_runs_and_goes_when_it_was_killed(build, tmp_path):
    process, lock = build
    assert remove_abandoned_locks(tmp_path) == [] and lock.exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert remove_abandoned_locks(tmp_path) == [lock] and not lock.exists()
    assert remove_abandoned_locks(tmp_path) == []


def test_other_files_stay(tmp_path):
    (tmp_path / "lock.cpp").write_text("")
    (tmp_path / "lock").mkdir()
    assert remove_abandoned_locks(tmp_path) == []
    assert (tmp_path / "lock.cpp").exists()


def test_the_cache_is_the_users_own(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    use_own_extensions(environment)
    folder = Path(environment[VARIABLE])
    assert folder.is_dir() and tmp_path in folder.parents and folder.stat().st_mode & 0o077 == 0
    (folder / "x").mkdir()
    (folder / "x/lock").touch()
    use_own_extensions(environment)  # set by now, so it counts as the user's
    assert (folder / "x/lock").exists()
    use_own_extensions({"XDG_CACHE_HOME": str(tmp_path)})
    assert not (folder / "x/lock").exists()
