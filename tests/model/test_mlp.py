import torch
import torch.nn.functional as F

from megatron_octo.model.mlp import swiglu


def test_swiglu_and_its_gradient_in_fp64():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(x), F.silu(gate) * up, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(swiglu, x)


def test_swiglu_leaves_its_input_alone():
    x = torch.randn(2, 8, requires_grad=True)
    before = x.detach().clone()
    swiglu(x).sum().backward()
    assert torch.equal(x.detach(), before)
