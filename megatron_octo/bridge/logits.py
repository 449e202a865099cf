"""The proof by logits: both models compute the same in fp32. Runs as its own process, `python -m` this module."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megatron_octo.errors import CheckpointError, OctoError

TOLERANCE = 1e-4
"""Largest difference of two logits in fp32. They differ because the two models sum in different orders."""
PROMPTS = (
    "Question:What is 12+7-5?\nAnswer:",
    "Let f be a function such that f(x + y) = f(x) + f(y) for all real x and y. Show that f(0) = 0.",
    "User:Write a limerick about the number seven.\nAssistant:",
)
_RANDOM_LENGTHS = (96, 96, 1024)
"""Lengths of prompts of random tokens. They reach rows of the vocabulary that no text does, and late positions, where
an error in RoPE's low frequencies shows."""


@dataclass(frozen=True)
class LogitsReport:
    """How far apart the logits of two models are."""

    tokens: int
    largest_difference: float
    """Over all tokens and the whole vocabulary."""
    top1_agreement: float
    """Share of tokens for which both models have the same most likely next token."""
    largest_kl: float
    """The largest KL divergence of the two distributions at one token, in nats."""
    is_finite: bool
    """Whether every logit of both models is finite. NaN on both sides would prove nothing."""

    @property
    def is_equal(self) -> bool:
        """Whether the logits agree within the tolerance, at every token."""
        return self.is_finite and self.largest_difference <= TOLERANCE and self.top1_agreement == 1.0


def compare_logits(hf: Path, megatron: Path) -> LogitsReport:
    """Run both models on fixed prompts, in a separate process, since the CPU runtime cannot be undone in this one.

    Raises:
        CheckpointError: one of them cannot be run; with its error output.
    """
    command = [sys.executable, "-m", "megatron_octo.bridge.logits", str(hf), str(megatron)]
    # on a GPU, Transformer Engine would use TF32 for fp32 products
    environment = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        output = "\n".join(finished.stderr.strip().splitlines()[-12:])
        raise CheckpointError(f"{megatron} and {hf}: the logits could not be computed:\n{output}")
    return LogitsReport(**json.loads(finished.stdout.splitlines()[-1]))


def _compare(hf: Path, megatron: Path) -> LogitsReport:
    from transformers import AutoModelForCausalLM

    from megatron_octo.bridge.hf_folder import open_hf_folder
    from megatron_octo.bridge.megatron_folder import open_megatron_folder
    from megatron_octo.model.build import build_model
    from megatron_octo.recipe import Parallel
    from megatron_octo.recipe.train import TrainSection
    from megatron_octo.runtime.checkpoint_loading import load_weights
    from megatron_octo.runtime.checkpoints import MANIFEST
    from megatron_octo.runtime.device import setup_device
    from megatron_octo.runtime.groups import start_process_groups, stop_process_groups
    from megatron_octo.runtime.rank import Rank

    # take the architecture from the checkpoint if it has one, so that an error in config.json shows as a difference
    folder = open_hf_folder(hf)
    architecture = open_megatron_folder(megatron, None if (megatron / MANIFEST).is_file() else hf).architecture
    device = setup_device(announce=False)
    train = TrainSection(
        sequence_length=max(_RANDOM_LENGTHS),
        micro_batch_size=1,
        global_batch_size=1,
        learning_rate=1.0,
        precision="fp32",
    )
    start_process_groups(Rank(0, 0, 1), Parallel(), device, seed=0)
    ours = build_model(architecture, train, Parallel(), device)[0].eval()
    load_weights(megatron, [ours])
    for parameter in ours.parameters():  # an export may be rounded, so round ours the same way
        parameter.data.copy_(parameter.to(folder.dtype).float())
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, use_safetensors=True
    )
    theirs.to(device).eval()
    count, agreed, largest, largest_kl, is_finite = 0, 0, 0.0, 0.0, True
    for prompt in _prompts(hf, architecture.vocab_size):
        tokens_1S = prompt[: architecture.max_position_embeddings].unsqueeze(0).to(device)
        positions_1S = torch.arange(tokens_1S.size(1), device=device).unsqueeze(0)
        with torch.no_grad():
            ours_SV = ours(tokens_1S, positions_1S, None)[0, :, : architecture.vocab_size].float()
            theirs_SV = theirs(tokens_1S).logits[0].float()
        is_finite &= bool(ours_SV.isfinite().all() and theirs_SV.isfinite().all())
        largest = max(largest, float((ours_SV - theirs_SV).abs().max()))
        agreed += int((ours_SV.argmax(-1) == theirs_SV.argmax(-1)).sum())
        count += tokens_1S.numel()
        a_SV, b_SV = F.log_softmax(theirs_SV.double(), -1), F.log_softmax(ours_SV.double(), -1)
        largest_kl = max(largest_kl, float((a_SV.exp() * (a_SV - b_SV)).sum(-1).max()))
    stop_process_groups()
    return LogitsReport(count, largest, agreed / count, largest_kl, is_finite)


def _prompts(hf: Path, vocab_size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocab_size, (length,), generator=generator) for length in _RANDOM_LENGTHS]
    if (hf / "tokenizer.json").is_file() or (hf / "tokenizer.model").is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(hf), trust_remote_code=False)
        prompts += [torch.tensor(tokenizer(text)["input_ids"]) for text in PROMPTS]
    return prompts


def main() -> int:
    """Compare, and print the report as JSON on the last line."""
    from megatron_octo.runtime.quiet import silence_library_warnings

    silence_library_warnings()
    parser = argparse.ArgumentParser(prog="python -m megatron_octo.bridge.logits", description=__doc__)
    parser.add_argument("hf", type=Path)
    parser.add_argument("megatron", type=Path)
    options = parser.parse_args()
    try:
        print(json.dumps(asdict(_compare(options.hf, options.megatron))))
    except OctoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
