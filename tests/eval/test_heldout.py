"""An exported model answers through vLLM what it answers through transformers."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_octo.eval.generate import generate
from tests.support import MINI, octo

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

# vLLM's CPU attention takes heads of 32 and more
WIDER = ["-s", "model.architecture.head_dim=32", "-s", "train.learning_rate=1e-2"]


@pytest.fixture(scope="module")
def exported(prepared, tmp_path_factory):
    """A stage of twenty steps, trained and exported."""
    folder = tmp_path_factory.mktemp("heldout")
    shutil.copytree(prepared / "runs", folder / "runs")
    octo("train", str(MINI), "stable", *WIDER, cwd=folder)
    told = octo("export", str(MINI), "stable", *WIDER, cwd=folder)
    assert "tensors read back and equal bit for bit" in told.stdout
    return folder


def test_vllm_says_what_transformers_says(exported):
    """The same greedy tokens, in fp32: 48 of them after each of four prompts."""
    folder = exported / "runs/mini/stages/stable/hf"
    prompts = ["Question:1+2+3\nAnswer:", "print(", "User:What is 7-4?\nAssistant:", "To find 12+7"]
    responses = generate(folder, prompts, max_tokens=48)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        output = model.generate(ids, max_new_tokens=48, do_sample=False)
        assert tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True) == response


def test_held_out_problems_are_answered_once_and_summed_up(exported):
    first = octo("heldout", str(MINI), "stable", *WIDER, cwd=exported).stdout
    assert "of 8 held-out problems right" in first and first.count("  ->  ") == 3
    summary = json.loads((exported / "runs/mini/summary.json").read_text())["stages"]["stable"]
    assert 0.0 <= summary["accuracy"] <= 1.0 and summary["problems"] == 8
    rows = (exported / "runs/mini/eval/stable/heldout.jsonl").read_text().splitlines()
    assert len(rows) == 8 and sum(json.loads(row)["right"] for row in rows) == round(8 * summary["accuracy"])
    again = octo("heldout", str(MINI), "stable", *WIDER, cwd=exported).stdout
    assert "answered already; skipped" in again
    assert "already exported" in octo("export", str(MINI), "stable", *WIDER, cwd=exported).stdout


def test_a_stage_that_is_not_exported(exported):
    told = octo("heldout", str(MINI), "decay", *WIDER, cwd=exported, check=False)
    assert told.returncode == 2 and "decay is not exported; run `octo export mini decay` first" in told.stderr


def test_a_stage_that_is_not_done(exported):
    told = octo("export", str(MINI), "decay", *WIDER, cwd=exported, check=False)
    assert told.returncode == 2 and "decay is not done" in told.stderr
