"""Causal core attention through torch's scaled_dot_product_attention, for the local layer spec."""

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType

from megatron_octo.errors import ModelError


class SdpaCoreAttention(torch.nn.Module):
    """Replacement for Megatron's DotProductAttention, which is unfused and needs a dense s x s mask."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        del layer_number, attention_type, attention_dropout, cp_comm_type, pg_collection
        if attn_mask_type != AttnMaskType.causal:
            raise ModelError(f"attention mask {attn_mask_type}: only causal attention is supported here")
        if config.context_parallel_size > 1:
            raise ModelError("parallel.context > 1 needs Transformer Engine, which is not installed; set it to 1")
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (sequence, batch, heads, head_dim).
            key: (sequence, batch, groups, head_dim), groups dividing heads.
            value: as `key`.

        Returns:
            (sequence, batch, heads * head_dim).

        Raises:
            ModelError: a mask, a bias or packed sequences are given.
        """
        if attention_mask is not None or attention_bias is not None or packed_seq_params is not None:
            raise ModelError("attention masks, biases and packed sequences need Transformer Engine's attention")
        repeats = query.size(2) // key.size(2)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        query_BNSD, key_BNSD, value_BNSD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        context_BNSD = F.scaled_dot_product_attention(
            query_BNSD, key_BNSD, value_BNSD, is_causal=True, scale=self.softmax_scale
        )
        return context_BNSD.permute(2, 0, 1, 3).flatten(2)

    def sharded_state_dict(self, *_: object, **__: object) -> dict[str, object]:
        """Nothing to store."""
        return {}
