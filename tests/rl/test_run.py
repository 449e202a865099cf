"""`octo rl` for real: Ray, DeepSpeed and vLLM on the CPU, from an export; ended in the middle, and resumed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.rl.runs import RL, WIDER, gone, needs_rl, processes_of, wait_for
from tests.support import LOOPBACK, MINI, lines, listening, octo

RAY_FOLDER = "/tmp/ray"

pytestmark = needs_rl


def refused(folder, *settings, stage="stable", rl=RL):
    told = octo("rl", str(MINI), stage, *WIDER, "-s", rl, *settings, cwd=folder, check=False)
    assert told.returncode == 2, told.stderr
    assert not (folder / "runs/mini/rl/stable/log.txt").exists()
    return told.stderr


def test_refusals_come_before_ray(exported, tmp_path):
    assert "decay is not exported; run `octo export mini decay` first" in refused(exported, stage="decay")
    told = octo("rl", str(MINI), "stable", *WIDER, cwd=exported, check=False)
    assert told.returncode == 2 and "mini has no `rl` section" in told.stderr
    assert "rl.prompts_per_step = 16: there are 12 prompts" in refused(exported, "-s", "rl.prompts_per_step=16")
    assert "rl.mini_batch_prompts = 3: does not divide" in refused(exported, "-s", "rl.mini_batch_prompts=3")
    assert "rl.micro_batch_size = 3: a mini-batch of 4 prompts x 2" in refused(exported, "-s", "rl.micro_batch_size=3")
    rows = tmp_path / "rows.json"
    rows.write_text('[{"problem": "1+1", "answer": "2"}]')
    prompts = f"rl.prompts={{kind: file, path: {rows}}}"
    assert "no field 'prompt' (it has problem, answer); set prompt_key: row 1" in refused(exported, "-s", prompts)
    assert "rl.algorithm" in refused(exported, "-s", "rl.algorithm=grpo")
    alone = refused(exported, "-s", "rl.samples_per_prompt=1", "-s", "rl.micro_batch_size=4")
    assert "samples_per_prompt = 1: group_norm compares samples of one prompt" in alone
    same = f"{{kind: file, path: {rows}, prompt_key: problem}}"
    overlap = refused(
        exported, "-s", f"rl.prompts={same}", "-s", f"rl.validation={same}", "-s", "rl.prompts_per_step=1",
        "-s", "rl.mini_batch_prompts=1", "-s", "rl.micro_batch_size=2",
    )  # fmt: skip
    assert "rl.validation: 1 of its 1 problems are among rl.prompts" in overlap
    nobody = refused(exported, "-s", "rl.ray_address=127.0.0.1:1")
    assert "rl.ray_address = 127.0.0.1:1: no Ray cluster answers there" in nobody
    assert "max_prompt" in refused(exported, "-s", "rl.max_promt_tokens=24")
    misspelt = refused(exported, "-s", "rl.openrlhf={actor.max_nrom: 0.5}")
    assert "OpenRLHF refuses its options: unrecognized arguments: --actor.max_nrom" in misspelt


SECRETS = ["HF_TOKEN", "HF_SECRET", "VLLM_API_KEY", "OCTO_PASSWORD", "DS_KEY", "NCCL_KEY", "OMP_KEY", "WANDB_API_KEY"]
SECRET = "a-secret-that-nobody-may-read"


def ray_session(pid):
    """The folder of the Ray that a process has started. Other Rays may run on this machine."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if (at := word.find(f"{RAY_FOLDER}/session_")) >= 0:
                    return Path(*Path(word[at:]).parts[:4])
    raise AssertionError("no Ray below this process")


def assert_private(folder, session):
    """No secret is in a log, and others cannot read Ray's logs."""
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_socket()]
    assert logs
    for path in [*logs, folder / "log.txt"]:
        assert SECRET.encode() not in path.read_bytes(), path
    assert session.stat().st_mode & 0o077 == 0 or all(path.stat().st_mode & 0o077 == 0 for path in logs)
    assert (folder.parents[1].stat().st_mode | folder.stat().st_mode) & 0o077 == 0


def test_a_run_that_is_ended_resumes_at_its_step(exported):
    """And at its place in the length schedule."""
    folder = exported / "runs/mini/rl/stable"
    words = [sys.executable, "-m", "megatron_octo.cli", "rl", str(MINI), "stable", *WIDER, "-s", RL]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OCTO_RUNS")}
    environment |= dict.fromkeys(SECRETS, SECRET)
    log = exported / "first.txt"
    with open(log, "w") as output:
        process = subprocess.Popen(words, cwd=exported, env=environment, stdout=output, stderr=subprocess.STDOUT)
        wait_for(folder / "log.txt", process, log)
        second = octo("rl", str(MINI), "stable", *WIDER, "-s", RL, cwd=exported, check=False)
        assert second.returncode == 2 and "another `octo rl`" in second.stderr
        wait_for(folder / "checkpoints/whole/global_step1", process, log)
        assert processes_of(folder)
        assert listening(process.pid) <= LOOPBACK
        session = ray_session(process.pid)
        process.send_signal(signal.SIGTERM)  # as SLURM does
        process.wait(120)
    assert gone(folder)
    assert_private(folder, session)
    assert not (folder / "result.json").exists(), log.read_text()
    before = lines(folder / "metrics.jsonl")
    assert 1 <= len(before) <= 2, log.read_text()
    told = octo("rl", str(MINI), "stable", *WIDER, "-s", RL, cwd=exported, timeout=500)
    records = lines(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert [record["response_limit"] for record in records] == [8, 8, 16]
    assert records[0] == before[0]
    assert all(record["response_length_max"] <= record["response_limit"] for record in records)
    assert records[2]["response_length_max"] > 8
    assert any(0 < record["truncated_share"] < 1 for record in records)
    assert any(record["grad_norm"] > 0 for record in records)
    # in both processes: the first sync after the resume gave vLLM what the checkpoint holds
    assert len(lines(folder / "syncs.jsonl")) >= 3
    # fp32 on both sides, so the two differ by more than rounding only where vLLM forbids what ends a text at once
    assert all(record["mismatch_far_share"] == 0 and record["mismatch_mean"] < 5e-3 for record in records)
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 3 and (folder / "last/config.json").is_file() and (folder / "curves.png").is_file()
    summary = json.loads((exported / "runs/mini/summary.json").read_text())["rl"]["stable"]
    assert {"accuracy_before", "accuracy_after", "problems", "steps", "mean_response_length"} <= summary.keys()
    assert summary["problems"] == 8
    assert "after RL" in told.stdout
    again = octo("rl", str(MINI), "stable", *WIDER, "-s", RL, cwd=exported, timeout=500)
    assert "RL is already complete" in again.stdout and "after RL: " in again.stdout
    assert again.stdout.count("already answered; skipped") == 1
    prompts = (folder / "prompts.jsonl").read_text()
    another = ["-s", RL, "-s", "rl.template='Sum: {prompt} ='"]
    changed = octo("rl", str(MINI), "stable", *WIDER, *another, cwd=exported, check=False)
    assert changed.returncode == 2 and "holds checkpoints of another rl section" in changed.stderr
    assert (folder / "prompts.jsonl").read_text() == prompts
