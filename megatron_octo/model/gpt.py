"""Megatron's GPTModel with this project's choice of loss."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel


class GPTModelWithLoss(GPTModel):
    """GPTModel whose loss does not depend on the layout, and is torch's own where the vocabulary is not split."""

    def __init__(self, *, true_vocab_size: int, **arguments: Any) -> None:
        """As GPTModel; `vocab_size` may be padded for tensor parallelism, `true_vocab_size` is the tokenizer's."""
        super().__init__(**arguments)
        self.true_vocab_size = true_vocab_size

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
