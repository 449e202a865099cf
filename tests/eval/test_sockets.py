"""The process that answers held-out problems listens on loopback alone."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_octo.data.tokenizer import bytes_tokenizer
from tests.bridge.models import make_model
from tests.support import LOOPBACK, listening


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_listens_on_loopback_alone(tmp_path):
    """The process that `octo heldout` starts, watched until it has answered."""
    model = make_model("llama-3.2", tmp_path / "hf", head_dim=32)
    PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer()).save_pretrained(model)
    asked = {"prompts": ["1+2="] * 4, "max_tokens": 64, "special_tokens": True, "stop": []}
    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "megatron_octo.eval.generate", str(model)]
    command += [str(tmp_path / "prompts.json"), str(tmp_path / "responses.json")]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
        seen: set[str] = set()
        while process.poll() is None:
            seen |= listening(process.pid)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert seen  # torch's store at least
    assert seen <= LOOPBACK
