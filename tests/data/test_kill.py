"""A preparation that is killed leaves nothing that could be taken for finished, and can be run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from megatron_octo.data.manifest import read_manifest, verify_manifest
from megatron_octo.recipe import dump_recipe
from megatron_octo.runtime.run_folder import RunFolder
from tests.data.helpers import jsonl, left_behind, recipe_of, run_prepare

PREPARE = """
import sys
from pathlib import Path
from megatron_octo.data import pieces
from megatron_octo.data.prepare import prepare
from megatron_octo.recipe import load_recipe
from megatron_octo.runtime.run_folder import RunFolder

if __name__ == "__main__":
    prepare(load_recipe(sys.argv[1]), RunFolder(Path(sys.argv[2])), workers=2)
"""


def test_killed_in_the_middle_and_run_again(tmp_path):
    file = tmp_path / "a.jsonl"
    line = json.dumps({"text": "the sum of twelve and seven is nineteen " * 40})
    with open(file, "w") as out:
        for i in range(60_000):  # about 100 MB: six tasks, some seconds
            out.write(line.replace("sum", f"sum {i}", 1) + "\n")
    recipe = recipe_of({"a": jsonl(file)})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "go.py").write_text(PREPARE)
    run = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "recipe.yaml"), str(run.root)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    deadline = time.monotonic() + 60
    while not list(run.data.glob(".a.partial-*/tasks/*.progress")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.source("a").exists()
    stale = list(run.data.glob(".a.partial-*"))
    assert len(stale) == 1
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive, "workers outlived the process that started them"
    # what is left is small from here: the point is that the second run starts clean and ends whole
    with open(file, "r+") as cut:
        cut.truncate(200 * (len(line) + 10))
    recipe = recipe_of({"a": jsonl(file, max_bad_rows=0.1)})
    run_prepare(recipe, run.root)
    assert left_behind(run) == ["a"]
    verify_manifest(run.source("a"), read_manifest(run.source("a")))
