"""Settings, waits and checks for tests that run `octo rl`."""

import contextlib
import time
from importlib.util import find_spec

import psutil
import pytest

WIDER = ["-s", "model.architecture.head_dim=32", "-s", "train.learning_rate=1e-2"]
RL = (
    "rl={prompts: {kind: builtin, count: 12}, prompts_per_step: 4, samples_per_prompt: 2, mini_batch_prompts: 4, "
    "micro_batch_size: 8, max_prompt_tokens: 24, learning_rate: 1e-4, save_every: 1, check_sync: true, "
    # mini answers nothing right; what is cut loses, so that rewards differ and weights move
    "stop: ['0', '1'], reward: {truncated_penalty: 0.5}, "
    "response_tokens: [{from_step: 0, tokens: 8}, {from_step: 2, tokens: 16}]}"
)
"""An `rl` section of three steps."""
needs_rl = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openrlhf", "ray", "deepspeed", "vllm")), reason="no OpenRLHF, Ray or vLLM"
)


def processes_of(folder):
    """Command lines of the processes that Ray and vLLM started for a run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in process.environ().get("OCTO_RL", "") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def gone(folder):
    """Wait until all of them have ended. The last few need moments to notice that the others did."""
    end = time.monotonic() + 60
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == []
    return True


def wait_for(path, process, log):
    """Wait until a process has made a file; fail with its log if it ends first."""
    end = time.monotonic() + 400
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)
