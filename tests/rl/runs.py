"""Runs of `octo rl` for tests: what they need, and what they leave."""

import contextlib
import time
from importlib.util import find_spec

import psutil
import pytest

WIDER = ["-s", "model.architecture.head_dim=32", "-s", "train.learning_rate=1e-2"]
needs_rl = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openrlhf", "ray", "deepspeed", "vllm")), reason="no OpenRLHF, Ray or vLLM"
)


def processes_of(folder):
    """Everything that Ray and vLLM started for a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in process.environ().get("OCTO_RL", "") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def gone(folder):
    """Whether all of them end; the last few need moments to see that the others did."""
    end = time.monotonic() + 60
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []
    return True
