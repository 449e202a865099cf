"""A converted model computes what transformers computes: logits in fp32, on text and on random tokens.

All pairs are compared in one process of their own, which the CPU runtime changes for good.
"""

import json
import shutil
import subprocess
import sys

import pytest

from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.logits import TOLERANCE, compare_logits
from megatron_octo.bridge.megatron_folder import open_megatron_folder
from megatron_octo.bridge.verify import verify_tensors
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


def test_a_rope_scaling_that_was_dropped_is_seen(tmp_path):
    """What the peers' users complain of: every bit of the weights is equal, and the model is another."""
    make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", Parallel())
    other = shutil.copytree(tmp_path / "hf", tmp_path / "other")
    change_config(other, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    report = compare_logits(other, tmp_path / "megatron")
    assert not report.is_equal and report.largest_difference > 10 * TOLERANCE
    with pytest.raises(CheckpointError, match=r"different architectures.*rope_scaling is .*32\.0"):
        verify_tensors(open_hf_folder(other), open_megatron_folder(tmp_path / "megatron"))
