"""The folder that long work is done in, and who may clear it."""

import re
import subprocess
import sys

import pytest

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.beside import folder_beside, put_in_new_place, put_in_place

HOLD = """
import sys
from pathlib import Path
from megatron_octo.runtime.beside import folder_beside
with folder_beside(Path(sys.argv[1])) as folder:
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


def test_what_another_process_is_making_is_left_alone(tmp_path, holder):
    process, name = holder
    said = rf"final: process {process.pid} is making it now .*{re.escape(name)}"
    with pytest.raises(RuntimeSetupError, match=said), folder_beside(tmp_path / "final"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_process_left_is_cleared(tmp_path, holder):
    process, name = holder
    process.kill()
    process.wait()
    assert (tmp_path / name).is_dir()
    with folder_beside(tmp_path / "final") as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_before_it_has_a_name_that_others_clear(tmp_path, monkeypatch):
    """Between making and locking its folder, a process was taken for a dead one by the next, and its work cleared."""
    from megatron_octo.runtime import beside

    seen = []
    flock = beside.fcntl.flock

    def locking(file, how):
        seen.extend(path.name for path in tmp_path.glob(".final.partial-*"))
        return flock(file, how)

    monkeypatch.setattr(beside.fcntl, "flock", locking)
    with folder_beside(tmp_path / "final") as folder:
        assert folder.is_dir()
    assert seen == []


def test_a_name_with_the_signs_of_a_pattern_clears_no_other(tmp_path):
    other = tmp_path / ".a.partial-1"
    other.mkdir()
    with folder_beside(tmp_path / "[ab]"):
        pass
    assert other.is_dir()


def test_put_in_place_takes_the_place_of_what_stands_there(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    put_in_place(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_put_in_new_place_does_not(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    with pytest.raises(RuntimeSetupError, match="something came to stand there meanwhile"):
        put_in_new_place(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["final"]
