"""An exported model gives the same answers through vLLM as through transformers."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.eval.generate import generate
from megatron_octo.recipe import Parallel
from tests.bridge.models import make_model
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


@pytest.mark.parametrize("kind", ["trained", "llama-3.2", "qwen2.5-untied"])
def test_vllm_says_what_transformers_says(kind, exported, tmp_path):
    """The same greedy tokens, in fp32: after each of four prompts, up to 48 of them."""
    folder = exported / "runs/mini/stages/stable/hf"
    if kind != "trained":
        tokenizer_folder, folder = folder, tmp_path / "back"
        # vLLM takes a Qwen2's head to be hidden / heads, whatever config.json says
        hf = make_model(kind, tmp_path / "hf", **({"hidden_size": 128} if "qwen" in kind else {"head_dim": 32}))
        import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2, pipeline=2))
        export_checkpoint(tmp_path / "megatron", folder, tokenizer=tokenizer_folder, dtype=torch.float32)
    prompts = ["Question:1+2+3\nAnswer:", "print(", "User:What is 7-4?\nAssistant:", "To find 12+7"]
    completions = generate(folder, prompts, max_tokens=48)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        output = model.generate(ids, max_new_tokens=48, do_sample=False)
        expected = output[0, ids.size(1) :].tolist()
        assert list(completion.token_ids) == expected and len(expected) > 8


def test_held_out_problems_are_answered_once_and_summed_up(exported):
    first = octo("heldout", str(MINI), "stable", *WIDER, cwd=exported).stdout
    assert "of 8 held-out problems right" in first and first.count("  ->  ") == 3
    summary = json.loads((exported / "runs/mini/summary.json").read_text())["stages"]["stable"]
    assert 0.0 <= summary["accuracy"] <= 1.0 and summary["problems"] == 8
    rows = (exported / "runs/mini/eval/stable/heldout.jsonl").read_text().splitlines()
    assert len(rows) == 8 and sum(json.loads(row)["right"] for row in rows) == round(8 * summary["accuracy"])
    again = octo("heldout", str(MINI), "stable", *WIDER, cwd=exported).stdout
    assert "already answered; skipped" in again
    assert "already exported" in octo("export", str(MINI), "stable", *WIDER, cwd=exported).stdout
    known = exported / "runs/mini/eval/stable/heldout.json"
    written = known.read_text()
    known.write_text(json.dumps(json.loads(written) | {"accuracy": "all"}))
    refused = octo("heldout", str(MINI), "stable", *WIDER, cwd=exported, check=False)
    known.write_text(written)
    assert refused.returncode == 2 and "heldout.json: accuracy = 'all'" in refused.stderr
    assert "remove it, to ask again" in refused.stderr


def test_changed_problems_are_asked_again(exported, tmp_path):
    """The accuracy in the summary is of the problems that are there now."""
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    problems = folder / "runs/mini/data/heldout/problems.jsonl"
    problems.write_text("".join(problems.read_text().splitlines(keepends=True)[:5]))
    octo("report", str(MINI), *WIDER, cwd=folder)
    assert "accuracy" not in json.loads((folder / "runs/mini/summary.json").read_text())["stages"]["stable"]
    assert "of 5 held-out problems right" in octo("heldout", str(MINI), "stable", *WIDER, cwd=folder).stdout


def test_a_stage_that_is_not_exported(exported):
    told = octo("heldout", str(MINI), "decay", *WIDER, cwd=exported, check=False)
    assert told.returncode == 2 and "decay is not exported; run `octo export mini decay` first" in told.stderr


def test_a_stage_that_is_not_complete(exported):
    told = octo("export", str(MINI), "decay", *WIDER, cwd=exported, check=False)
    assert told.returncode == 2 and "decay is not complete" in told.stderr
