"""The rotary embedding (RoPE) of the local layer spec, as one autograd function, and the attention that uses it."""

from functools import lru_cache
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttention


class _Rotate(torch.autograd.Function):
    """Rotates pairs (x[i], x[i + half]) by an angle; the backward rotates by the negative angle.

    Megatron's implementation concatenates a rotated copy, multiplies twice, concatenates again, and computes sines and
    cosines in every layer, which takes an eighth of a training step of `tiny` on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, x_SBND: torch.Tensor, cos_S11R: torch.Tensor, sin_S11R: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos_S11R, sin_S11R)
        return _rotated(x_SBND, cos_S11R, sin_S11R, 1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos_S11R, sin_S11R = ctx.saved_tensors
        return _rotated(grads[0], cos_S11R, sin_S11R, -1), None, None


def _rotated(x_SBND: torch.Tensor, cos_S11R: torch.Tensor, sin_S11R: torch.Tensor, sign: int) -> torch.Tensor:
    output = torch.empty_like(x_SBND, memory_format=torch.contiguous_format)
    (first, second), (out_first, out_second) = x_SBND.chunk(2, dim=-1), output.chunk(2, dim=-1)
    torch.mul(first, cos_S11R, out=out_first).addcmul_(second, sin_S11R, value=-sign)
    torch.mul(second, cos_S11R, out=out_second).addcmul_(first, sin_S11R, value=sign)
    return output


@lru_cache(maxsize=8)
def _cos_sin(angles_S11D: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    # cached by identity: Megatron passes the same tensor of angles to every layer
    half = angles_S11D[..., : angles_S11D.size(-1) // 2]
    return half.cos().to(dtype), half.sin().to(dtype)


def rotate(x_SBND: torch.Tensor, angles_S11D: torch.Tensor) -> torch.Tensor:
    """Rotary embedding with non-interleaved halves.

    Args:
        x_SBND: (sequence, batch, heads, head_dim), any strides.
        angles_S11D: (sequence, 1, 1, head_dim) fp32 radians, the second half equal to the first.

    Returns:
        As `x_SBND`, contiguous.

    Raises:
        ValueError: angles of another length or head size.
    """
    if angles_S11D.shape != (x_SBND.size(0), 1, 1, x_SBND.size(-1)):
        raise ValueError(f"angles of shape {tuple(angles_S11D.shape)} for an input of shape {tuple(x_SBND.shape)}")
    output: torch.Tensor = _Rotate.apply(x_SBND, *_cos_sin(angles_S11D, x_SBND.dtype))  # type: ignore[no-untyped-call]
    return output


class RotarySelfAttention(SelfAttention):
    """Megatron's self-attention with its parameters and sharding; only the rotation is computed differently."""

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, rotary_pos_emb: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From (sequence, batch, hidden) to the same shape; the second value is the bias, which is None."""
        self._angles_S11D = rotary_pos_emb
        output: tuple[torch.Tensor, torch.Tensor | None] = super().forward(hidden_states, *args, **kwargs)
        return output

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """The rotated query and key, and the value."""
        query, key, value = super().get_query_key_value_tensors(*args, **kwargs)
        if (angles := self._angles_S11D) is None:
            return query, key, value
        return rotate(query, angles), rotate(key, angles), value
