"""Temporary folders, who may clear them, and their renaming."""

import re
import subprocess
import sys

import pytest

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.atomic_folder import publish_folder, temporary_folder_for

HOLD = """
import sys
from pathlib import Path
from megatron_octo.runtime.atomic_folder import temporary_folder_for
with temporary_folder_for(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that is making `tmp_path / "final"`, and the name of its folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "final")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_is_making_is_left_alone(tmp_path, holder):
    process, name = holder
    said = rf"final: process {process.pid} is making it now .*{re.escape(name)}"
    with pytest.raises(RuntimeSetupError, match=said), temporary_folder_for(tmp_path / "final"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder_of_a_killed_process_is_removed(tmp_path, holder):
    process, name = holder
    process.kill()
    process.wait()
    assert (tmp_path / name).is_dir()
    with temporary_folder_for(tmp_path / "final") as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_before_it_has_a_name_that_others_clear(tmp_path, monkeypatch):
    """A process could be taken for dead between making its folder and locking it, and its work was removed."""
    from megatron_octo.runtime import lock

    seen = []
    flock = lock.fcntl.flock

    def locking(file, how):
        seen.extend(path.name for path in tmp_path.glob(".final.partial-*"))
        return flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", locking)
    with temporary_folder_for(tmp_path / "final") as folder:
        assert folder.is_dir()
    assert seen == []


def test_a_name_with_wildcards_clears_no_other(tmp_path):
    other = tmp_path / ".a.partial-1"
    other.mkdir()
    with temporary_folder_for(tmp_path / "[ab]"):
        pass
    assert other.is_dir()


def test_a_published_folder_replaces_the_old_one(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish_folder(tmp_path / "new", tmp_path / "final", replace=True)
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_folder_is_not_replaced_unasked(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(RuntimeSetupError, match="something was put there meanwhile"):
        publish_folder(tmp_path / "new", tmp_path / "final", replace=False)
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["final"]
