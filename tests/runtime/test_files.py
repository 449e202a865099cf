import json
import os
import signal
import subprocess
import sys
import time

import pytest

from megatron_octo.runtime.files import sha256_of, sha256_of_json, write_json_atomically, write_text_atomically


def test_text_replaces_text_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "two")
    assert path.read_text() == "two" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_numbers_that_json_has_not_are_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file.json"
    write_json_atomically(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Killed at any moment, the file is one of the whole versions."""
    code = (
        "import sys; from pathlib import Path; from megatron_octo.runtime.files import write_text_atomically\n"
        "for i in range(10**6): write_text_atomically(Path(sys.argv[1]), str(i % 10) * 50000)"
    )
    path = tmp_path / "file.txt"
    for delay in (0.6, 0.7, 0.85):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if path.exists():
            text = path.read_text()
            assert len(text) == 50000 and len(set(text)) == 1


def test_digests_agree_with_hashlib(tmp_path):
    import hashlib

    path = tmp_path / "file.bin"
    path.write_bytes(b"x" * (9 << 20))
    seen = []
    assert sha256_of(path, seen.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(seen) == 9 << 20
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1}) != sha256_of_json({"a": 2, "b": 2})
