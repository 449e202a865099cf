"""RMSNorm for the local layer spec, with sequence parallelism."""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class _RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32.

    On the CPU, torch composes RMSNorm of a dozen operations, and autograd twice as many for its backward.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scale: torch.Tensor = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.size(-1)).add_(eps).rsqrt_()
        )
        ctx.save_for_backward(x, weight_H, scale)
        output: torch.Tensor = (wide * scale).mul_(weight_H)
        return output.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight_H, scale = ctx.saved_tensors
        normal = x * scale
        grad = grads[0].to(normal.dtype)
        product = grad * normal
        grad_weight_H = product.flatten(0, -2).sum(0)
        # the component along x has no gradient: the norm cancels it
        along = (product @ weight_H.to(product.dtype)).div_(x.size(-1)).unsqueeze(-1)
        grad_x = torch.addcmul(grad * weight_H, normal, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight_H.to(weight_H.dtype), None


def rms_norm(x: torch.Tensor, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm.

    Args:
        x: (..., hidden).
        weight_H: (hidden,).
        eps: added to the mean square.

    Returns:
        As `x`.
    """
    output: torch.Tensor = _RmsNorm.apply(x, weight_H, eps)  # type: ignore[no-untyped-call]
    return output


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm under Megatron's constructor.

    Megatron's wrapper refuses sequence parallelism, which only needs the weight to be marked: each tensor rank sees its
    part of the sequence, and `finalize_model_grads` sums the gradients of marked weights over the tensor group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `x`, (..., hidden)."""
        if x.is_cuda:  # torch has a single kernel for it there
            return super().forward(x)
        return rms_norm(x, self.weight, float(self.eps or 0.0))
