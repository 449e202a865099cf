"""Megatron-Core's TransformerConfig of an architecture under a layout."""

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_octo.errors import ModelError
from megatron_octo.model.precision import precision_fields
from megatron_octo.recipe import Architecture, Parallel
from megatron_octo.recipe.train import TrainSection
from megatron_octo.runtime.device import on_cpu


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """Vocabulary rounded up to a multiple of the tensor-parallel size, and no further.

    Megatron-LM pads to a multiple of 128 x TP and includes the padding in the softmax, so that its loss depends on the
    layout. Here there is as little padding as possible, and GPTModelWithLoss masks it.
    """
    return -(-vocab_size // tensor) * tensor


def transformer_config(architecture: Architecture, train: TrainSection, layout: Parallel) -> TransformerConfig:
    """The TransformerConfig of a model under a layout.

    Megatron initializes the weights itself, since that also sets the tensor-parallel attributes of its parameters. The
    weights that a stage really starts from replace them.

    Raises:
        ModelError: RoPE parameters that Megatron-Core cannot compute, or FP8 without a CUDA device.
    """
    _check_rope(architecture)
    cpu = on_cpu()
    fields: dict[str, Any] = {
        "num_layers": architecture.num_hidden_layers,
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size": architecture.intermediate_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_query_groups": architecture.num_key_value_heads,
        "kv_channels": architecture.kv_channels,
        "layernorm_epsilon": architecture.rms_norm_eps,
        "normalization": "RMSNorm",
        "activation_func": F.silu,
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "add_qkv_bias": architecture.attention_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": architecture.initializer_range,
        "use_cpu_initialization": cpu,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline,
        "context_parallel_size": layout.context,
        "sequence_parallel": layout.sequence,
        "deallocate_pipeline_outputs": True,
        # in an interleaved pipeline, batched transfers between the same two ranks are matched by order alone, and
        # activations can be taken for gradients (seen at pipeline 2 on gloo: no error, and no learning); unbatched
        # transfers use separate groups. Overlapping them relies on CUDA streams: gloo would send from freed memory
        "batch_p2p_comm": layout.virtual_pipeline is None,
        "overlap_p2p_comm": layout.virtual_pipeline is not None and not cpu,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": not cpu,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": not cpu,
        "bias_dropout_fusion": not cpu,
        "apply_rope_fusion": not cpu,
        "cross_entropy_loss_fusion": not cpu,
        "cross_entropy_fusion_impl": "te",
    }
    fields |= precision_fields(train)
    fields |= _recompute_fields(train.recompute)
    return TransformerConfig(**fields)


def _check_rope(architecture: Architecture) -> None:
    """Refuse RoPE that Megatron-Core would silently compute differently. A recipe was checked; a manifest was not."""
    scaling = architecture.rope_scaling
    if scaling is not None and (problems := list(scaling.all_problems("model.architecture.rope_scaling"))):
        raise ModelError("; ".join(str(problem) for problem in problems))


def _recompute_fields(recompute: str) -> dict[str, Any]:
    if recompute == "none":
        return {}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
