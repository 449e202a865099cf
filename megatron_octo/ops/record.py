"""What the token operators give back."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenLogProbs:
    """Per token, in fp32 (fp64 for fp64 input); 0 where the target is the ignore index."""

    log_probs: torch.Tensor
    """(tokens,) log-probability of the target under the temperature-scaled distribution."""
    log_sum_exp: torch.Tensor
    """(tokens,) log of the sum of exp(logits / temperature)."""
    entropy: torch.Tensor | None
    """(tokens,) in nats, where it was asked for."""
