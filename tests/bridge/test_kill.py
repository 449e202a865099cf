"""SIGKILL in the middle of a conversion: the final name is whole or absent, and the next try succeeds."""

import random
import signal
import subprocess
import sys
import time

import pytest

from megatron_octo.runtime.checkpoints import verify_checkpoint
from megatron_octo.runtime.progress import bytes_of
from tests.bridge.models import make_model, same_bits

KILLS, BYTES = 3, 70_000_000
TOOL = "tools/convert_checkpoint.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of 70 MB, whose conversion takes a moment."""
    folder = tmp_path_factory.mktemp("killed")
    make_model("llama-3.1", folder / "hf", hidden_size=256, vocab_size=64_000, intermediate_size=1024)
    subprocess.run([sys.executable, TOOL, "import", folder / "hf", folder / "megatron"], check=True)
    return folder


@pytest.mark.parametrize("way", ["import", "export"])
def test_killed_in_the_middle(folders, way):
    source, target = (folders / "hf", folders / "m") if way == "import" else (folders / "megatron", folders / "back")
    command = [sys.executable, TOOL, way, str(source), str(target)]
    dice, torn = random.Random(way), 0
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        written, moment = 0, dice.uniform(0.0, 0.6) * BYTES
        while written <= moment:
            assert process.poll() is None and time.monotonic() < deadline
            output = folders / f".{target.name}.partial-{process.pid}/output"
            written = bytes_of(output) if output.is_dir() else 0
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists()
        torn += bool(list(folders.glob(f".{target.name}.partial-*")))
    assert torn == KILLS  # every kill came in the middle
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert not list(folders.glob(".*"))  # and the next try cleared what they left
    if way == "import":
        verify_checkpoint(target)
    else:
        assert same_bits(folders / "hf", target)
