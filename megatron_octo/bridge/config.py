"""Converts a Hugging Face `config.json` to an Architecture and back; refuses what Megatron-Core cannot compute."""

import json
from pathlib import Path
from typing import Any

import torch

from megatron_octo.bridge.families import family_of
from megatron_octo.errors import ModelError
from megatron_octo.reading.json_text import json_kind, read_json_object, shortened, validated
from megatron_octo.recipe import Architecture
from megatron_octo.runtime.links import check_inside

CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a Hugging Face folder.

    Raises:
        ModelError: there is none, it is not a JSON object within the reader's limits, or a link out of the folder.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}, so it is not a Hugging Face model; give the folder that has it")
    check_inside(folder, path, ModelError)
    return read_json_object(path, ModelError)


def architecture_of(config: dict[str, Any], where: str) -> Architecture:
    """The architecture that a configuration describes. Missing keys take transformers' own defaults.

    Raises:
        ModelError: a family without a weight map, a number out of bounds, or a part that Megatron-Core would compute
            differently.
    """
    model_type = str(config.get("model_type"))
    family_of(model_type, where)
    _check_layers(config, where)
    read = _read_by_transformers({key: config[key] for key in _READ if key in config}, where)
    for key, expected, what in _FIXED[model_type]:
        if key in read and read[key] not in expected:
            raise ModelError(f"{where}: {key} = {shortened(repr(read[key]))}: {what}; this model cannot be converted")
    if config.get("quantization_config"):
        raise ModelError(f"{where}: quantization_config is set: quantized weights cannot be trained; dequantize first")
    rope = read.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"{where}: rope_parameters = {shortened(repr(rope))}: not an object; {_FIX}")
    if (theta := config.get("rope_theta")) is not None and theta != rope.get("rope_theta", theta):
        raise ModelError(  # transformers 5 takes one of the two, and 4 the other
            f"{where}: rope_theta = {shortened(repr(theta))}, and {rope['rope_theta']} in rope_parameters; keep one"
        )
    fields = {
        "model_type": model_type,
        **{key: read[key] for key in _SAME if key in read},
        "head_dim": read.get("head_dim"),
        "rope_theta": rope.get("rope_theta", read.get("rope_theta")),
        "rope_scaling": _rope_scaling(rope, where),
        "attention_bias": model_type == "qwen2",
    }
    _check_types(fields, where)
    architecture = validated(fields, Architecture, where, ModelError, _FIX)
    if problems := list(architecture.all_problems(CONFIG)):
        raise ModelError(f"{where}: {'; '.join(str(problem) for problem in problems)}")
    return architecture


_FIX = "correct config.json, or copy it again"
_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_SAME = (*_SIZES, "rms_norm_eps", "tie_word_embeddings", "initializer_range")
_READ = (
    "model_type", *_SAME, "head_dim", "hidden_act", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor", "use_sliding_window", "sliding_window", "max_window_layers",
)  # fmt: skip
"""The keys that transformers is given: those that decide what the model computes, and no others."""

_SILU = ("hidden_act", ("silu",), "Megatron's gated MLP is built with silu here")
_FIXED: dict[str, tuple[tuple[str, tuple[Any, ...], str], ...]] = {
    "llama": (
        _SILU,
        ("attention_bias", (False,), "a Llama with it has a bias on the output projection, which is not built here"),
        ("mlp_bias", (False,), "biases in the MLP are not built here"),
    ),
    "qwen2": (_SILU, ("use_sliding_window", (False,), "attention is over the whole sequence here")),
}


def _check_layers(config: dict[str, Any], where: str) -> None:
    """Check the number of layers before transformers makes a list of that length."""
    layers, most = config.get("num_hidden_layers", 1), _MOST_LAYERS
    if type(layers) is not int or not 0 < layers <= most:
        raise ModelError(f"{where}: num_hidden_layers = {shortened(repr(layers))}: a model has 1 to {most:,}; {_FIX}")
    types = config.get("layer_types")
    if types is not None and (not isinstance(types, list) or any(kind != "full_attention" for kind in types)):
        kinds = sorted({str(kind) for kind in types}) if isinstance(types, list) else types
        raise ModelError(
            f"{where}: layer_types = {shortened(repr(kinds))}: attention is over the whole sequence in every layer "
            "here; this model cannot be converted"
        )


_MOST_LAYERS = next(
    int(bound.le) for bound in Architecture.model_fields["num_hidden_layers"].metadata if hasattr(bound, "le")
)


def _read_by_transformers(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The configuration as transformers reads it, with its defaults and both of its spellings of RoPE."""
    from transformers import AutoConfig

    try:
        read: dict[str, Any] = AutoConfig.for_model(**config).to_dict()
    except Exception as error:  # many types: a missing key of RoPE, a field of another type
        reason = shortened(" ".join(f"{error!r}".split()), 300)
        raise ModelError(f"{where}: transformers cannot read its config.json ({reason}); {_FIX}") from None
    return read


def _check_types(fields: dict[str, Any], where: str) -> None:
    """Refuse text in place of a number: the next reader of config.json may interpret it differently."""
    for key, value in fields.items():
        if key in (*_SIZES, "head_dim"):
            fits = type(value) is int or (key == "head_dim" and value is None)
        elif key in ("rms_norm_eps", "initializer_range", "rope_theta"):
            fits = type(value) in (int, float)
        else:
            fits = key != "tie_word_embeddings" or isinstance(value, bool)
        if not fits:
            raise ModelError(
                f"{where}: {key} = {shortened(repr(value))}: {json_kind(value)} is not allowed here; {_FIX}"
            )


def _rope_scaling(rope: dict[str, Any], where: str) -> dict[str, Any] | None:
    kind = rope.get("rope_type", "default")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        share = shortened(repr(rope["partial_rotary_factor"]))
        raise ModelError(
            f"{where}: partial_rotary_factor = {share}: RoPE rotates whole heads here; this model cannot be converted"
        )
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(
            f"{where}: rope_type = {shortened(repr(kind))}: Megatron-Core computes 'default' and 'llama3' only; "
            "this model cannot be converted without changing what it computes"
        )
    keys = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {key: rope[key] for key in keys if key in rope}


def config_of(
    architecture: Architecture, dtype: torch.dtype, base: dict[str, Any] | None, tokens: dict[str, Any]
) -> str:
    """The text of a `config.json` that transformers 4, transformers 5 and vLLM all read the same way.

    Args:
        base: the configuration of the model that training started from. Its keys that do not describe the
            architecture are kept.
        tokens: `bos_token_id`, `eos_token_id` and `pad_token_id`, for a model without a base.
    """
    family = family_of(architecture.model_type, "model.architecture")
    config = dict(base) if base is not None else {"use_cache": True, **tokens}
    written = architecture.model_dump(mode="json", exclude={"attention_bias", "head_dim", "rope_scaling", "rope_theta"})
    config |= {"architectures": [family.class_name], "hidden_act": "silu", "attention_dropout": 0.0, **written}
    config["head_dim"] = architecture.kv_channels
    scaling = architecture.rope_scaling.model_dump(mode="json") if architecture.rope_scaling is not None else None
    config.pop("auto_map", None)  # it names code, which is not exported
    config.pop("rope_parameters", None)  # the spelling of transformers 5; 4 ignores it and computes without scaling
    config |= {"rope_theta": architecture.rope_theta, "rope_scaling": scaling}
    if architecture.model_type == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    config["torch_dtype"] = config["dtype"] = DTYPE_NAMES[dtype]
    return json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
