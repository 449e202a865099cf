"""RMSNorm for the local layer spec, with sequence parallelism."""

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron's constructor.

    Megatron's wrapper refuses sequence parallelism. All it takes is to mark the weight: each tensor rank then sees
    its part of the sequence, and `finalize_model_grads` sums the marked gradients over the tensor group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
