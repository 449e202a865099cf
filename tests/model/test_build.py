"""The model built from a Hugging Face configuration computes what transformers computes.

One process, fp32, random weights copied over by hand: the independent reference is transformers.LlamaForCausalLM and
Qwen2ForCausalLM. The process is this test's own, since the CPU runtime changes torch for good.
"""

import subprocess
import sys

import pytest

CODE = """
from megatron_octo.runtime.quiet import silence_library_warnings as q; q()
import json, sys, torch
from megatron_octo.runtime.device import setup_device
from megatron_octo.runtime.groups import start_process_groups
from megatron_octo.runtime.rank import Rank
from megatron_octo.recipe import Architecture, Parallel
from megatron_octo.recipe.train import TrainSection
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

shape = Architecture.model_validate(json.loads(sys.argv[1]))
device = setup_device(announce=False)
start_process_groups(Rank(0, 0, 1), Parallel(), device, 1)
from megatron_octo.model.build import build_model

train = TrainSection(sequence_length=64, micro_batch_size=2, global_batch_size=2, learning_rate=1e-3, precision="fp32",
                     recompute=sys.argv[2])
model = build_model(shape, train, Parallel(), device)[0]
fields = shape.model_dump(exclude={"model_type", "rope_scaling", "attention_bias", "rope_theta"}, exclude_none=True)
rope = {"rope_theta": shape.rope_theta, "rope_type": "default"}
if shape.rope_scaling: rope |= shape.rope_scaling.model_dump()
kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
config_class, model_class = kinds[shape.model_type]
torch.manual_seed(0)
reference = model_class(config_class(**fields, rope_parameters=rope, attn_implementation="eager")).eval()
theirs = dict(reference.named_parameters())
with torch.no_grad():
    for p in theirs.values(): p.add_(0.02 * torch.randn_like(p))   # norms and biases too
    d, groups = shape.kv_channels, shape.num_key_value_heads
    def put(name, tensor): dict(model.named_parameters())[name].copy_(tensor)
    put("embedding.word_embeddings.weight", theirs["model.embed_tokens.weight"])
    put("decoder.final_layernorm.weight", theirs["model.norm.weight"])
    if not shape.tie_word_embeddings: put("output_layer.weight", theirs["lm_head.weight"])
    for i in range(shape.num_hidden_layers):
        ours, hf = f"decoder.layers.{i}.", f"model.layers.{i}."
        for kind in ["weight"] + (["bias"] if shape.attention_bias else []):
            q, k, v = (theirs[f"{hf}self_attn.{x}_proj.{kind}"] for x in "qkv")
            parts = [x.reshape(groups, -1, d, *x.shape[1:]) for x in (q, k, v)]
            put(f"{ours}self_attention.linear_qkv.{kind}", torch.cat(parts, 1).reshape(-1, *q.shape[1:]))
        put(f"{ours}self_attention.linear_proj.weight", theirs[f"{hf}self_attn.o_proj.weight"])
        put(f"{ours}mlp.linear_fc1.weight", torch.cat([theirs[f"{hf}mlp.{x}_proj.weight"] for x in ("gate", "up")]))
        put(f"{ours}mlp.linear_fc2.weight", theirs[f"{hf}mlp.down_proj.weight"])
        put(f"{ours}input_layernorm.weight", theirs[f"{hf}input_layernorm.weight"])
        put(f"{ours}pre_mlp_layernorm.weight", theirs[f"{hf}post_attention_layernorm.weight"])
tokens = torch.randint(shape.vocab_size, (2, 64))
positions = torch.arange(64).expand(2, -1)
labels = torch.randint(shape.vocab_size, (2, 64))
expected = reference(tokens).logits
model.eval()
print("logits", float((model(tokens, positions, None) - expected).abs().max()))
model.train()
ours = model(tokens, positions, None, labels=labels)
hers = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="none").view(2, 64)
print("loss", float((ours - hers).abs().max()))
ours.mean().backward(); hers.mean().backward()
grads = dict(model.named_parameters())
print("grad", float((grads["embedding.word_embeddings.weight"].grad
                     - theirs["model.embed_tokens.weight"].grad).abs().max()))
print("size", shape.num_parameters() - sum(p.numel() for p in reference.parameters()))
"""

SMALL = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99, "max_position_embeddings": 16384,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 32.0}
CASES = {
    "llama-tied-rope32": (SMALL | {"tie_word_embeddings": True, "rope_theta": 5e5, "rope_scaling": LLAMA3}, "none"),
    "llama-untied-rope8": (SMALL | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"factor": 8.0}}, "none"),
    "llama-head-dim": (SMALL | {"head_dim": 32, "num_key_value_heads": 4}, "full"),
    "qwen2-tied": (
        SMALL | {"model_type": "qwen2", "attention_bias": True, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        "selective",
    ),
}
TOLERANCE = {"logits": 2e-5, "loss": 2e-5, "grad": 1e-6, "size": 0}


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_transformers_computes(case):
    import json

    shape, recompute = CASES[case]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(shape), recompute], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert measured.keys() == TOLERANCE.keys()
    for name, limit in TOLERANCE.items():
        assert abs(measured[name]) <= limit, f"{name}: {measured[name]}"
