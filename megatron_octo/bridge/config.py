"""A Hugging Face `config.json` to an Architecture and back, with what cannot be expressed refused."""

import json
from pathlib import Path
from typing import Any

import torch

from megatron_octo.bridge.families import family_of
from megatron_octo.errors import ModelError
from megatron_octo.model.rope import check_expressible
from megatron_octo.recipe import Architecture

CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a Hugging Face folder.

    Raises:
        ModelError: there is none, or it is not JSON.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}, so it is not a Hugging Face model; give the folder that has it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a configuration is an object, this is {type(config).__name__}; copy it again")
    return config


def architecture_of(config: dict[str, Any], where: str) -> Architecture:
    """The shape that a configuration describes. What it leaves out takes transformers' own defaults.

    Raises:
        ModelError: a family that has no table, or a part that Megatron-Core would compute differently.
    """
    model_type = str(config.get("model_type"))
    family_of(model_type, where)
    from transformers import AutoConfig

    try:
        # transformers knows its defaults, and reads both of its ways to write RoPE
        read = AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # it raises many kinds: a missing key of a RoPE, a field of another type
        raise ModelError(f"{where}: transformers cannot read its config.json ({error!r}); mend it") from None
    for key, expected, what in _FIXED[model_type]:
        if key in read and read[key] not in expected:
            raise ModelError(f"{where}: {key} = {read[key]!r}: {what}; this model cannot be converted")
    if config.get("quantization_config"):
        raise ModelError(f"{where}: quantization_config is set: quantized weights cannot be trained; dequantize first")
    rope = read.get("rope_parameters") or {}
    shape = Architecture.model_validate(
        {
            "model_type": model_type,
            **{key: read[key] for key in _SAME},
            "head_dim": read.get("head_dim") or None,
            "rope_theta": rope.get("rope_theta") or read.get("rope_theta"),
            "rope_scaling": _rope_scaling(rope, where),
            "attention_bias": model_type == "qwen2",
        }
    )
    check_expressible(shape)
    return shape


_SAME = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "initializer_range",
)  # fmt: skip

_SILU = ("hidden_act", ("silu",), "Megatron's gated MLP is built with silu here")
_FIXED: dict[str, tuple[tuple[str, tuple[Any, ...], str], ...]] = {
    "llama": (
        _SILU,
        ("attention_bias", (False,), "a Llama with it has a bias on the output projection, which is not built here"),
        ("mlp_bias", (False,), "biases in the MLP are not built here"),
    ),
    "qwen2": (_SILU, ("use_sliding_window", (False,), "attention is over the whole sequence here")),
}


def _rope_scaling(rope: dict[str, Any], where: str) -> dict[str, Any] | None:
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"{where}: partial_rotary_factor = {rope['partial_rotary_factor']}: RoPE turns whole heads here; "
            "this model cannot be converted"
        )
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(
            f"{where}: rope_type = {kind!r}: Megatron-Core computes 'default' and 'llama3' only; "
            "this model cannot be converted without changing what it computes"
        )
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {key: rope[key] for key in keys if key in rope}


def config_of(shape: Architecture, dtype: torch.dtype, base: dict[str, Any] | None, tokens: dict[str, Any]) -> str:
    """The text of a `config.json`, in the spelling that transformers 4 and 5 and vLLM all read.

    Args:
        base: the configuration of the model that training began from; what it says beyond the shape is kept.
        tokens: `bos_token_id` and the like, for a model that has no base.
    """
    family = family_of(shape.model_type, "model.architecture")
    config = dict(base) if base is not None else {"use_cache": True, **tokens}
    written = shape.model_dump(mode="json", exclude={"attention_bias", "head_dim", "rope_scaling", "rope_theta"})
    config |= {"architectures": [family.class_name], "hidden_act": "silu", "attention_dropout": 0.0, **written}
    config["head_dim"] = shape.kv_channels
    scaling = shape.rope_scaling.model_dump(mode="json") if shape.rope_scaling is not None else None
    config.pop("rope_parameters", None)  # as transformers 5 spells it: 4 would ignore it, and compute without scaling
    config |= {"rope_theta": shape.rope_theta, "rope_scaling": scaling}
    if shape.model_type == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    config["torch_dtype"] = config["dtype"] = DTYPE_NAMES[dtype]
    return json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
