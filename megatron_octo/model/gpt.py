"""Megatron's GPTModel with a loss that does not depend on the layout."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from megatron_octo.ops import VocabShard, linear_token_log_probs


class GPTModelWithLoss(GPTModel):
    """GPTModel whose loss does not depend on the layout; torch's own cross-entropy if the vocabulary is not split."""

    def __init__(self, *, true_vocab_size: int, fused_linear_loss: bool = False, **arguments: Any) -> None:
        """As GPTModel, but `vocab_size` may be padded for tensor parallelism; `true_vocab_size` is the tokenizer's.

        Args:
            fused_linear_loss: compute the loss from hidden states and the output weight, without materializing logits.
        """
        super().__init__(**arguments)
        self.true_vocab_size, self.fused_linear_loss = true_vocab_size, fused_linear_loss

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, labels: Any = None, **kwargs: Any) -> torch.Tensor:
        """As Megatron's, except for the fused loss: (batch, sequence) fp32."""
        if labels is None or not self.post_process or not self.fused_linear_loss:
            output: torch.Tensor = super()._postprocess(hidden_states, *args, labels=labels, **kwargs)
            return output
        return self._fused_linear_loss(hidden_states, labels)

    def _fused_linear_loss(self, hidden_SBH: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        group = self.pg_collection.tp
        if self.config.sequence_parallel:  # its backward is a reduce-scatter over the ranks
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=group)
        shares = self.share_embeddings_and_output_weights
        weight_VH = self.shared_embedding_or_output_weight() if shares else self.output_layer.weight
        shard = None
        if group.size() > 1:
            first = group.rank() * weight_VH.size(0)
            shard = VocabShard(group, first, min(weight_VH.size(0), max(0, self.true_vocab_size - first)))
        sequence, batch = hidden_SBH.shape[:2]
        result = linear_token_log_probs(
            hidden_SBH.flatten(0, 1),
            weight_VH,
            labels_BS.transpose(0, 1).reshape(-1),
            shard=shard,
            reduce_hidden_grad=not self.config.sequence_parallel,
            skip_ignored=False,
        )
        return -result.log_probs.view(sequence, batch).transpose(0, 1)

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of every token over the true vocabulary.

        With one tensor rank and without a fused kernel, torch's loss is used: it makes two passes over the logits,
        where Megatron's vocabulary-parallel loss makes a dozen.

        Args:
            labels: (batch, sequence) int64.
            logits: (sequence, batch, vocabulary of this rank).

        Returns:
            (batch, sequence) fp32.
        """
        if self.vocab_size > self.true_vocab_size:
            logits = self._mask_padding(logits)
        if self.pg_collection.tp.size() > 1 or self.config.cross_entropy_loss_fusion:
            losses_BS: torch.Tensor = super().compute_language_model_loss(labels, logits)
            return losses_BS
        sequence, batch = logits.shape[:2]
        flat = F.cross_entropy(logits.float().flatten(0, 1), labels.transpose(0, 1).reshape(-1), reduction="none")
        return flat.view(sequence, batch).transpose(0, 1)

    def _mask_padding(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits whose padded columns have no weight in the softmax."""
        first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
        columns = torch.arange(first, first + logits.size(-1), device=logits.device)
        # not -inf: a rank may hold nothing but padding, and its maximum must be finite
        return logits.masked_fill(columns >= self.true_vocab_size, torch.finfo(logits.dtype).min)
