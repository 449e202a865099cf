"""Small random models of each family, made by transformers, with nothing in them left at a round number."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from megatron_octo.bridge.hf_folder import open_hf_folder

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 261, "max_position_embeddings": 16384,
}  # fmt: skip


def llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip


# vocabularies that 2 does not divide; head_dim that is not hidden / heads; one to four key-value heads
CASES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "llama-3.2": (
        "llama",
        SMALL | {"tie_word_embeddings": True, "head_dim": 32, "rope_parameters": llama3_rope(32.0)},
        torch.bfloat16,
    ),
    "llama-3.2-old-spelling": (  # as published: transformers 4 wrote it
        "llama",
        SMALL | {"tie_word_embeddings": True, "head_dim": 32, "rope_parameters": llama3_rope(32.0)},
        torch.bfloat16,
    ),
    "llama-3.1": (
        "llama",
        SMALL | {"tie_word_embeddings": False, "vocab_size": 264, "rope_parameters": llama3_rope(8.0)},
        torch.bfloat16,
    ),
    "llama-2": ("llama", SMALL | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}, torch.float16),
    "qwen2.5-tied": (
        "qwen2",
        SMALL | {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        torch.bfloat16,
    ),
    "qwen2.5-untied": ("qwen2", SMALL | {"tie_word_embeddings": False, "vocab_size": 263}, torch.float32),
}
_CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def make_model(case: str, folder: Path, shard: str = "5GB", **changes: Any) -> Path:
    """Save a random model of a case; norms and biases are random too."""
    family, fields, dtype = CASES[case]
    config_class, model_class = _CLASSES[family]
    torch.manual_seed(len(case))
    model = model_class(config_class(**(fields | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if case.endswith("old-spelling"):
        rope = dict(json.loads((folder / "config.json").read_text())["rope_parameters"])
        theta = rope.pop("rope_theta")
        change_config(folder, rope_parameters=None, rope_theta=theta, rope_scaling=rope)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, as raw bits."""
    opened = open_hf_folder(folder)
    return {name: opened.tensor(name).contiguous().view(torch.uint8) for name in opened.tensors}


def same_bits(a: Path, b: Path) -> bool:
    one, other = tensors_of(a), tensors_of(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def change_config(folder: Path, **changes: Any) -> Path:
    """Alter config.json; a value of None takes a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder
