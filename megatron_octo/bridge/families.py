"""The weight maps, one table for each family. A new family is a new table here, and its keys in `config.py`."""

from megatron_octo.bridge.weight_map import GATE_ABOVE_UP, QUERY_KEY_VALUE, Family, Part, Rule
from megatron_octo.errors import ModelError
from megatron_octo.reading.json_text import shortened

_LAYER = "model.layers.{}."
_OURS = "decoder.layers."

_OUTPUT = Rule("output_layer.weight", (Part("lm_head.weight", ("vocabulary", "hidden")),), split=0)

_LLAMA = (
    Rule(
        "embedding.word_embeddings.weight",
        (Part("model.embed_tokens.weight", ("vocabulary", "hidden")),),
        split=0,
    ),
    # Megatron names a norm after the linear layer that follows it: Transformer Engine fuses the two
    Rule(
        _OURS + "self_attention.linear_qkv.layer_norm_weight",
        (Part(_LAYER + "input_layernorm.weight", ("hidden",)),),
    ),
    Rule(
        _OURS + "self_attention.linear_qkv.weight",
        (
            Part(_LAYER + "self_attn.q_proj.weight", ("queries", "hidden")),
            Part(_LAYER + "self_attn.k_proj.weight", ("keys", "hidden")),
            Part(_LAYER + "self_attn.v_proj.weight", ("keys", "hidden")),
        ),
        QUERY_KEY_VALUE,
        split=0,
    ),
    Rule(
        _OURS + "self_attention.linear_proj.weight",
        (Part(_LAYER + "self_attn.o_proj.weight", ("hidden", "queries")),),
        split=1,
    ),
    Rule(
        _OURS + "mlp.linear_fc1.layer_norm_weight",
        (Part(_LAYER + "post_attention_layernorm.weight", ("hidden",)),),
    ),
    Rule(
        _OURS + "mlp.linear_fc1.weight",
        (
            Part(_LAYER + "mlp.gate_proj.weight", ("ffn", "hidden")),
            Part(_LAYER + "mlp.up_proj.weight", ("ffn", "hidden")),
        ),
        GATE_ABOVE_UP,
        split=0,
    ),
    Rule(
        _OURS + "mlp.linear_fc2.weight",
        (Part(_LAYER + "mlp.down_proj.weight", ("hidden", "ffn")),),
        split=1,
    ),
    Rule("decoder.final_layernorm.weight", (Part("model.norm.weight", ("hidden",)),)),
)

_QKV_BIAS = Rule(
    _OURS + "self_attention.linear_qkv.bias",
    (
        Part(_LAYER + "self_attn.q_proj.bias", ("queries",)),
        Part(_LAYER + "self_attn.k_proj.bias", ("keys",)),
        Part(_LAYER + "self_attn.v_proj.bias", ("keys",)),
    ),
    QUERY_KEY_VALUE,
    split=0,
)

FAMILIES = {
    # old Llama 2 conversions also store RoPE's frequencies, which follow from the configuration
    "llama": Family("llama", "LlamaForCausalLM", _LLAMA, _OUTPUT, ignored=("rotary_emb.inv_freq",)),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", (*_LLAMA, _QKV_BIAS), _OUTPUT),
}


def family_of(model_type: str, where: str) -> Family:
    """The family of a Hugging Face `model_type`.

    Raises:
        ModelError: there is no weight map for it.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: model_type {shortened(repr(model_type))} has no weight map; known: {', '.join(FAMILIES)}. "
            "A new family is a table in megatron_octo/bridge/families.py"
        )
    return FAMILIES[model_type]
