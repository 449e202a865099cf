"""Digests of the trainer's weights and of vLLM's: equal where the weights are, and only there."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_octo.rl.sync_check import differences, engine_digests, trainer_digests

VOCABULARY = 50


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def as_vllm_keeps_them(trainer):
    """By hand: queries, keys and values are rows of one tensor, gate and up of another, embeddings padded."""
    weights = dict(trainer.named_parameters())
    kept = {name: weights[name] for name in weights if "norm" in name or "o_proj" in name or "down_proj" in name}
    kept["model.embed_tokens.weight"] = torch.cat([weights["model.embed_tokens.weight"], torch.full((14, 16), 7.0)])
    for layer in ("model.layers.0.", "model.layers.1."):
        parts = [weights[f"{layer}self_attn.{part}_proj.weight"] for part in ("q", "k", "v")]
        kept[f"{layer}self_attn.qkv_proj.weight"] = torch.cat(parts)
        parts = [weights[f"{layer}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        kept[f"{layer}mlp.gate_up_proj.weight"] = torch.cat(parts)
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def test_equal_weights_have_equal_digests_and_one_bit_is_seen():
    trainer = model()
    ours = trainer_digests(trainer.named_parameters())
    kept = as_vllm_keeps_them(trainer)
    assert differences(ours, engine_digests(kept.items(), VOCABULARY)) == []
    bits = kept["model.layers.1.self_attn.qkv_proj.weight"].view(torch.int32)
    bits[-1, -1] ^= 1
    assert differences(ours, engine_digests(kept.items(), VOCABULARY)) == ["model.layers.1.self_attn.qkv_proj.weight"]


def test_a_tensor_that_one_side_lacks_is_named():
    trainer = model()
    kept = as_vllm_keeps_them(trainer)
    del kept["model.norm.weight"]
    found = engine_digests(kept.items(), VOCABULARY)
    assert differences(trainer_digests(trainer.named_parameters()), found) == ["model.norm.weight"]
