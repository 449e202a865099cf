"""PPO with a critic for real, on a Ray cluster that is there already, with a validation set and every sync compared."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from transformers import AutoModelForCausalLM

from tests.rl.runs import WIDER, gone, needs_rl
from tests.support import MINI, lines, octo

pytestmark = needs_rl
RL = (
    "rl={algorithm: gae, prompts: {kind: builtin, count: 12}, validation: {kind: builtin, count: 8}, "
    "prompts_per_step: 4, samples_per_prompt: 2, mini_batch_prompts: 4, micro_batch_size: 8, max_prompt_tokens: 24, "
    "validate_every: 1, learning_rate: 1e-4, save_every: 2, keep: 2, check_sync: true, "
    "reward: {truncated_penalty: 0.5}, "
    "response_tokens: [{from_step: 0, tokens: 12}]}"
)


@pytest.fixture
def ray_cluster():
    """Three slots that Ray takes for GPUs: of the actor, the critic and one engine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-gpus=3",
        "--num-cpus=16", "--include-dashboard=false", "--node-ip-address=127.0.0.1",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    end = time.monotonic() + 90
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None and time.monotonic() < end, "ray did not start"
        time.sleep(0.5)
    time.sleep(3)  # the node joins after the port is open
    yield f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


def test_ppo_with_a_critic(exported, ray_cluster):
    folder = exported / "runs/mini/rl/stable"
    words = ["rl", str(MINI), "stable", *WIDER, "-s", RL, "-s", f"rl.ray_address={ray_cluster}"]
    told = octo(*words, "-s", "rl.engines=3", cwd=exported, check=False)
    assert told.returncode == 2 and "rl asks for 5 GPUs" in told.stderr and "Ray has 3" in told.stderr
    assert not (folder / "log.txt").exists()

    # the alarm ends it at its first step, with a checkpoint of the actor and the critic, though none was due
    alarm = "rl.alarm={window: 1, truncated_share: 0.01, stop: true}"
    told = octo(*words, "-s", alarm, cwd=exported, check=False, timeout=400)
    assert told.returncode == 3, told.stderr
    assert "ALARM" in told.stdout and "stopped at step 1" in told.stderr and "are cut at their limit" in told.stderr
    assert [record["step"] for record in lines(folder / "metrics.jsonl")] == [1]
    assert not (folder / "result.json").exists()
    assert {"_actor", "_critic", "whole"} <= {path.name for path in (folder / "checkpoints").iterdir()}

    told = octo(*words, cwd=exported, timeout=400)
    records = lines(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3], told.stdout
    assert all(record["critic_loss"] > 0 and record["grad_norm"] > 0 for record in records)

    # vLLM had the trainer's weights after every sync, bit for bit: 4 x (qkv, o, gate-up, down, 2 norms) + 2
    syncs = lines(folder / "syncs.jsonl")
    assert len(syncs) >= 3 and all(sync == {"tensors": 26, "engines": 1} for sync in syncs)

    # the best by the validation score, which no practised problem is in, loads as it is
    prompts, validation = (
        {row["input"] for row in lines(folder / f"{name}.jsonl")} for name in ("prompts", "validation")
    )
    assert len(validation) == 8 and prompts.isdisjoint(validation)
    scores = {score["step"]: score["accuracy"] for score in lines(folder / "validation_scores.jsonl")}
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["accuracy"] == max(scores.values()) == scores[best["step"]]
    assert AutoModelForCausalLM.from_pretrained(folder / "best").config.hidden_size == 64
    # of the copies in Hugging Face's form, those of checkpoints that are kept
    kept = {path.name for path in (folder / "checkpoints/_actor").iterdir() if path.is_dir()}
    assert {path.name.removesuffix("_hf") for path in (folder / "checkpoints").glob("*_hf")} <= kept
    assert (folder / "checkpoints/_critic/latest").is_file()
    assert gone(folder)
