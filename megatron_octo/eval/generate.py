"""Greedy answers from an exported model, by vLLM: `python -m megatron_octo.eval.generate`, a process of its own.

vLLM sets up threads, memory and logging for its whole process, and gives nothing back until that ends.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.files import write_text_atomically
from megatron_octo.runtime.loopback import keep_stores_on_loopback, stay_on_loopback

_NOISE = re.compile("leaked|nanobind|skipped remainder")
"""What libraries print as they are taken down, after the reason."""


@dataclass(frozen=True)
class Completion:
    """What a model said after a prompt."""

    text: str
    token_ids: tuple[int, ...]


def generate(
    model: Path,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    special_tokens: bool = True,
    stop: Sequence[str] = (),
) -> list[Completion]:
    """What a model says after each prompt, greedily, up to its end of text, a text of `stop`, or `max_tokens`.

    Args:
        model: a folder that an export made.
        special_tokens: begin with the token that the tokenizer begins texts with, if it has one.

    Raises:
        RuntimeSetupError: vLLM is not installed, or failed; with what it said last.
    """
    if find_spec("vllm") is None:
        raise RuntimeSetupError("vLLM is not installed; run `bash tools/install.sh`")
    with tempfile.TemporaryDirectory(prefix="octo-generate-") as work:
        asked, answered, log = (Path(work) / name for name in ("prompts.json", "responses.json", "log"))
        asked.write_text(
            json.dumps(
                {
                    "prompts": list(prompts),
                    "max_tokens": max_tokens,
                    "special_tokens": special_tokens,
                    "stop": list(stop),
                }
            )
        )
        command = [sys.executable, "-m", "megatron_octo.eval.generate", str(model), str(asked), str(answered)]
        with open(log, "w") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if done.returncode or not answered.is_file():
            lines = log.read_text(errors="replace").strip().splitlines()
            said = "\n".join([line for line in lines if not _NOISE.search(line)][-12:])
            raise RuntimeSetupError(f"{model}: vLLM ended with status {done.returncode}:\n{said}")
        return [Completion(text, tuple(ids)) for text, ids in json.loads(answered.read_text())]


def _settings(model: Path, longest: int, max_tokens: int) -> dict[str, object]:
    """Arguments of vLLM's engine for this machine."""
    import torch

    settings: dict[str, object] = {"model": str(model), "max_model_len": longest + max_tokens, "seed": 0}
    if torch.cuda.is_available():
        return settings
    # left to itself, vLLM runs fp32 weights in half precision, and compiles for longer than small models take to answer
    config = json.loads((model / "config.json").read_text())
    # a share of this machine's memory; the key-value cache has its own limit in the environment
    dtype = config.get("torch_dtype") or config["dtype"]  # transformers 5 writes the second
    return settings | {"dtype": dtype, "enforce_eager": True, "gpu_memory_utilization": 0.1}


def main() -> None:
    """Read prompts, write responses."""
    parser = argparse.ArgumentParser(prog="python -m megatron_octo.eval.generate", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("responses", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    stay_on_loopback()
    keep_stores_on_loopback()
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    asked = json.loads(options.prompts.read_text())
    tokenizer = AutoTokenizer.from_pretrained(str(options.model), trust_remote_code=False)
    special = asked["special_tokens"]
    tokens = [tokenizer(prompt, add_special_tokens=special)["input_ids"] for prompt in asked["prompts"]]
    engine = LLM(**_settings(options.model, max(map(len, tokens)), asked["max_tokens"]))
    greedy = SamplingParams(
        temperature=0.0, max_tokens=asked["max_tokens"], stop=asked["stop"], include_stop_str_in_output=True
    )
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in tokens], greedy, use_tqdm=False)
    write_text_atomically(
        options.responses, json.dumps([[o.outputs[0].text, list(o.outputs[0].token_ids)] for o in outputs])
    )
    sys.stdout.flush()
    os._exit(0)  # libraries underneath print pages of leaks where Python takes them down


if __name__ == "__main__":
    main()
