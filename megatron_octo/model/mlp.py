"""The gated MLP of the local layer spec, with SwiGLU as one autograd function."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * up, whose backward writes both halves of one tensor.

    Autograd would make the gradients of the two halves separately and then copy them together, which takes a tenth of a
    training step of `tiny` on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,) = grads
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up.

    Args:
        gate_up: (..., 2 * ffn), the gate's half first.

    Returns:
        (..., ffn), same dtype.
    """
    output: torch.Tensor = _SwiGlu.apply(gate_up)  # type: ignore[no-untyped-call]
    return output


class SwiGluMLP(MLP):
    """Megatron's MLP with its parameters and sharding; only the activation is computed differently."""

    def forward(
        self, hidden_states: torch.Tensor, per_token_scale: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From (sequence, batch, hidden) to the same shape; the second value is the bias, which is None."""
        del per_token_scale
        gate_up, _bias = self.linear_fc1(hidden_states)
        output, output_bias = self.linear_fc2(swiglu(gate_up))
        return output, output_bias
