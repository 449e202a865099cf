"""The file lock that one process at a time can hold."""

import os
import subprocess
import sys

from megatron_octo.runtime.lock import try_lock

TRY = "import sys; from pathlib import Path; from megatron_octo.runtime.lock import try_lock; "
TRY += "sys.exit(try_lock(Path(sys.argv[1])) is None)"


def is_locked_for_others(path):
    return subprocess.run([sys.executable, "-c", TRY, str(path)], check=False).returncode == 1


def test_a_lock_excludes_other_processes_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    descriptor = try_lock(path)
    assert is_locked_for_others(path)
    assert try_lock(path) is None  # a second descriptor of the same process is excluded too
    os.close(descriptor)
    assert not is_locked_for_others(path)


def test_a_lock_lasts_as_long_as_the_process_that_inherited_it(tmp_path):
    path = tmp_path / "lock"
    descriptor = try_lock(path)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    os.close(descriptor)
    assert try_lock(path) is None
    child.kill()
    child.wait()
    os.close(try_lock(path))


def test_the_file_gets_the_permissions_asked_for(tmp_path):
    os.close(try_lock(tmp_path / "lock", mode=0o600))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
