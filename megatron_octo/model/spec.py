"""The modules of a layer: Transformer Engine's if it is installed and there is a GPU, otherwise local ones."""

from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_octo.model.attention import SdpaCoreAttention
from megatron_octo.model.mlp import SwiGluMLP
from megatron_octo.model.norm import RMSNorm
from megatron_octo.model.rotary import RotarySelfAttention
from megatron_octo.runtime.device import on_cpu


def uses_transformer_engine() -> bool:
    """Whether layers use Transformer Engine."""
    return bool(HAVE_TE) and not on_cpu()


def layer_spec(config: TransformerConfig, virtual_stage: int | None) -> ModuleSpec | TransformerBlockSubmodules:
    """The spec of this pipeline rank's part of the decoder, or of one of its virtual stages."""
    if uses_transformer_engine():
        return get_gpt_layer_with_transformer_engine_spec()
    layer = get_gpt_layer_local_spec(normalization="LayerNorm")  # the norms are replaced below
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.mlp.module = SwiGluMLP
    layer.submodules.self_attention.module = RotarySelfAttention
    layer.submodules.self_attention.submodules.core_attention = SdpaCoreAttention
    count = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
