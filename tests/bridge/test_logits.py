"""A converted model computes what transformers computes: logits in fp32, on text and on random tokens.

All pairs are compared in one process of their own, which the CPU runtime changes for good.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.logits import TOLERANCE, LogitsReport, compare_logits
from megatron_octo.bridge.megatron_folder import open_megatron_folder
from megatron_octo.bridge.verify import verify_tensors
from megatron_octo.cli import main
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Parallel
from tests.bridge.models import CASES, change_config, make_model

LAYOUTS = {"llama-3.2": Parallel(tensor=2, pipeline=2), "qwen2.5-untied": Parallel(tensor=4)}
COMPARE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from megatron_octo.runtime.quiet import silence_library_warnings as q; q()
from megatron_octo.bridge.logits import _compare
for folder in map(Path, sys.argv[1:]):
    print(json.dumps(asdict(_compare(folder / "hf", folder / "megatron"))))
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    root = tmp_path_factory.mktemp("logits")
    for case in CASES:
        make_model(case, root / case / "hf")
        import_checkpoint(root / case / "hf", root / case / "megatron", LAYOUTS.get(case, Parallel()))
    command = [sys.executable, "-c", COMPARE, *(str(root / case) for case in CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, reports):
    report = reports[case]
    assert report["largest_difference"] <= TOLERANCE == 1e-4
    assert report["top1_agreement"] == 1.0 and report["largest_kl"] < 1e-9
    assert report["tokens"] == 2 * 96 + 1024


def test_the_commands_exit_status_says_what_they_found(tmp_path, capsys):
    hf = make_model("qwen2.5-tied", tmp_path / "hf")
    megatron, other = str(tmp_path / "megatron"), tmp_path / "other"
    assert main(["convert", "import", str(hf), megatron, "--tensor-parallel", "2"]) == 0
    assert main(["convert", "verify", str(hf), megatron, "--logits"]) == 0
    assert "top-1 agreement 100.00%" in capsys.readouterr().out
    shutil.copytree(hf, other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert main(["convert", "verify", str(other), megatron, "--logits"]) == 1
    assert "1 of" in (said := capsys.readouterr().out) and "tensors differ: model.norm.weight" in said
    assert main(["convert", "import", str(hf), megatron]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert main(["convert", "import", str(hf), str(tmp_path / "x"), "--virtual-pipeline", "0"]) == 2


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({}, True),
        ({"largest_difference": 2e-4}, False),
        ({"top1_agreement": 0.99}, False),
        ({"is_finite": False}, False),
    ],
)
def test_beyond_the_tolerance_or_not_finite_is_not_equal(changes, equal):
    report = LogitsReport(tokens=1, largest_difference=1e-6, top1_agreement=1.0, largest_kl=0.0, is_finite=True)
    assert replace(report, **changes).is_equal == equal


def test_nan_on_both_sides_is_no_proof(tmp_path):
    hf = make_model("llama-2", tmp_path / "hf")
    tensors = load_file(hf / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint(hf, tmp_path / "megatron", Parallel(), allow_nan=True)
    report = compare_logits(hf, tmp_path / "megatron")
    assert not report.is_finite and not report.is_equal


def test_a_rounded_export_is_compared_as_rounded(tmp_path):
    hf, megatron, rounded = make_model("qwen2.5-untied", tmp_path / "hf"), tmp_path / "megatron", tmp_path / "rounded"
    import_checkpoint(hf, megatron, Parallel())
    export_checkpoint(megatron, rounded, dtype=torch.bfloat16)
    report = compare_logits(rounded, megatron)
    assert report.is_equal and report.largest_difference <= TOLERANCE


def test_a_rope_scaling_that_was_dropped_is_seen(tmp_path):
    """A fault that peers' users report: every bit of the weights is equal, and the model is another."""
    make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", Parallel())
    other = shutil.copytree(tmp_path / "hf", tmp_path / "other")
    change_config(other, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    report = compare_logits(other, tmp_path / "megatron")
    assert not report.is_equal and report.largest_difference > 10 * TOLERANCE
    with pytest.raises(CheckpointError, match=r"different architectures.*rope_scaling is .*32\.0"):
        verify_tensors(open_hf_folder(other), open_megatron_folder(tmp_path / "megatron"))
