"""Benchmark of OpenRLHF's actor: this project's log-probs against its own, on the same batch in one run.

    python tools/bench_rl.py [--vocabulary 128256] [--hidden 512] [--layers 2] [--batch 8] [--length 128] [--rounds 5]

It measures forward and backward of log-probs and entropy through OpenRLHF's Actor, with a random Llama and without
DeepSpeed: median seconds, and peak memory beyond that in use before, gradients included. The dtype is fp32 on the CPU,
as in `octo rl`, and bf16 on a GPU.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megatron_octo.ops.bench.measure import peak_extra_bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens a sequence; the first quarter is the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both log-probs in turns."""
    if not torch.cuda.is_available():
        from megatron_octo.rl.cpu import install_rl_on_cpu

        install_rl_on_cpu()
    from openrlhf.models.actor import Actor
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_octo.rl.actor import install_fused_actor

    original = Actor.forward
    install_fused_actor()
    forwards = {"octo": Actor.forward, "openrlhf": original}
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        tie_word_embeddings=True,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        dtype = "bf16" if device.type == "cuda" else "fp32"
        actor = Actor(folder, attn_implementation="sdpa", param_dtype=dtype).to(device)
    batch = _batch(options, device)
    seconds: dict[str, list[float]] = {name: [] for name in forwards}
    extra: dict[str, int] = {}
    for name, forward in forwards.items():
        Actor.forward = forward
        _step(actor, batch)  # warms up
        extra[name] = peak_extra_bytes(lambda: _step(actor, batch))
    for _ in range(options.rounds):
        for name, forward in forwards.items():
            Actor.forward = forward
            start = time.perf_counter()
            _step(actor, batch)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "dtype": dtype,
        "seconds": medians,
        "extra_bytes": extra,
        "seconds_ratio": medians["octo"] / medians["openrlhf"],
        "memory_ratio": extra["octo"] / extra["openrlhf"],
    }


def _batch(options: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    size = (options.batch, options.length)
    sequences = torch.randint(options.vocabulary, size, generator=generator).to(device)
    attention = torch.ones_like(sequences)
    actions = torch.ones(options.batch, options.length - 1, dtype=torch.bool, device=device)
    actions[:, : options.length // 4] = False
    return sequences, actions, attention


def _step(actor: Any, batch: tuple[torch.Tensor, ...]) -> None:
    sequences, actions, attention = batch
    actor.model.zero_grad(set_to_none=True)
    log_probs, output = actor(sequences, actions, attention_mask=attention, return_output=True, return_entropy=True)
    entropy = output.entropy[:, -actions.size(1) :] * actions
    (log_probs.sum() + 0.01 * entropy.sum()).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
