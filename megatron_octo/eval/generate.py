"""Greedy answers from an exported model, by vLLM: `python -m megatron_octo.eval.generate`, a process of its own.

vLLM sets up threads, memory and logging for its whole process, and releases nothing before the process ends.
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
"""Lines that libraries print at shutdown, after the reason of a failure."""


@dataclass(frozen=True)
class Completion:
    """The text that a model generated after a prompt."""

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
    """Greedy completions of the prompts, in their order. Each ends with end of text, a stop text, or `max_tokens`.

    Args:
        model: the folder of an export.
        special_tokens: start each prompt with the tokenizer's begin-of-text token, if it has one.
        stop: texts that end a completion. They stay part of it.

    Raises:
        RuntimeSetupError: vLLM is not installed, or failed; with the last lines of its output.
    """
    if find_spec("vllm") is None:
        raise RuntimeSetupError("vLLM is not installed; run `bash tools/install.sh`")
    with tempfile.TemporaryDirectory(prefix="octo-generate-") as work:
        request, responses, log = (Path(work) / name for name in ("prompts.json", "responses.json", "log"))
        request.write_text(
            json.dumps(
                {
                    "prompts": list(prompts),
                    "max_tokens": max_tokens,
                    "special_tokens": special_tokens,
                    "stop": list(stop),
                }
            )
        )
        command = [sys.executable, "-m", "megatron_octo.eval.generate", str(model), str(request), str(responses)]
        with open(log, "w") as output:
            process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if process.returncode or not responses.is_file():
            lines = log.read_text(errors="replace").strip().splitlines()
            last_lines = "\n".join([line for line in lines if not _NOISE.search(line)][-12:])
            raise RuntimeSetupError(f"{model}: vLLM ended with status {process.returncode}:\n{last_lines}")
        return [Completion(text, tuple(ids)) for text, ids in json.loads(responses.read_text())]


def _engine_arguments(model: Path, longest: int, max_tokens: int) -> dict[str, object]:
    """Arguments of vLLM's engine for this machine; `longest` is the longest prompt in tokens."""
    import torch

    arguments: dict[str, object] = {"model": str(model), "max_model_len": longest + max_tokens, "seed": 0}
    if torch.cuda.is_available():
        return arguments
    # by default vLLM runs fp32 weights in half precision, and compiles for longer than a small model takes to answer
    config = json.loads((model / "config.json").read_text())
    dtype = config.get("torch_dtype") or config["dtype"]  # transformers 5 writes the second
    # gpu_memory_utilization is a share of this machine's memory; VLLM_CPU_KVCACHE_SPACE limits the key-value cache
    return arguments | {"dtype": dtype, "enforce_eager": True, "gpu_memory_utilization": 0.1}


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

    request = json.loads(options.prompts.read_text())
    tokenizer = AutoTokenizer.from_pretrained(str(options.model), trust_remote_code=False)
    special = request["special_tokens"]
    tokens = [tokenizer(prompt, add_special_tokens=special)["input_ids"] for prompt in request["prompts"]]
    engine = LLM(**_engine_arguments(options.model, max(map(len, tokens)), request["max_tokens"]))
    greedy = SamplingParams(
        temperature=0.0, max_tokens=request["max_tokens"], stop=request["stop"], include_stop_str_in_output=True
    )
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in tokens], greedy, use_tqdm=False)
    write_text_atomically(
        options.responses, json.dumps([[o.outputs[0].text, list(o.outputs[0].token_ids)] for o in outputs])
    )
    sys.stdout.flush()
    os._exit(0)  # on a normal exit, libraries below vLLM print pages about leaks


if __name__ == "__main__":
    main()
