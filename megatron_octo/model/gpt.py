"""Megatron's GPTModel with this project's choice of loss."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

from megatron_octo.ops import VocabShard, linear_token_log_probs


class GPTModelWithLoss(GPTModel):
    """GPTModel whose loss does not depend on the layout, and is torch's own where the vocabulary is not split."""

    def __init__(self, *, true_vocab_size: int, fused_linear_loss: bool = False, **arguments: Any) -> None:
        """As GPTModel; `vocab_size` may be padded for tensor parallelism, `true_vocab_size` is the tokenizer's.

        Args:
            fused_linear_loss: take the loss from hidden states and the output weight, without whole logits.
        """
        super().__init__(**arguments)
        self.true_vocab_size, self.fused_linear_loss = true_vocab_size, fused_linear_loss

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, labels: Any = None, **kwargs: Any) -> torch.Tensor:
        """Megatron's, but for the loss where it is fused: (batch, sequence) fp32."""
        if labels is None or not self.post_process or not self.fused_linear_loss:
            output: torch.Tensor = super()._postprocess(hidden_states, *args, labels=labels, **kwargs)
            return output
        return self._fused_linear_loss(hidden_states, labels)

    def _fused_linear_loss(self, hidden_SBH: torch.Tensor, labels_BS: torch.Tensor) -> torch.Tensor:
        group = self.pg_collection.tp
        if self.config.sequence_parallel:  # its backward sums over the ranks, and scatters
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

        Megatron's vocabulary-parallel loss makes a dozen passes over the logits; with one tensor rank, and on a
        machine with no fused kernel, torch's takes two.

        Args:
            labels: (batch, sequence) int64.
            logits: (sequence, batch, vocabulary of this rank).

        Returns:
            (batch, sequence) fp32.
        """
        if self.vocab_size > self.true_vocab_size:
            logits = self._without_padding(logits)
        if self.pg_collection.tp.size() > 1 or self.config.cross_entropy_loss_fusion:
            losses_BS: torch.Tensor = super().compute_language_model_loss(labels, logits)
            return losses_BS
        sequence, batch = logits.shape[:2]
        flat = F.cross_entropy(logits.float().flatten(0, 1), labels.transpose(0, 1).reshape(-1), reduction="none")
        return flat.view(sequence, batch).transpose(0, 1)

    def _without_padding(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits whose padded columns take no share of the softmax."""
        first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
        columns = torch.arange(first, first + logits.size(-1), device=logits.device)
        # not -inf: a rank may hold nothing but padding, and its maximum must stay a number
        return logits.masked_fill(columns >= self.true_vocab_size, torch.finfo(logits.dtype).min)
