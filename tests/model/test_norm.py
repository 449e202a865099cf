import pytest
import torch
import torch.nn.functional as F

from megatron_octo.model.norm import rms_norm

# (outputs and gradients by element, the weight's gradient), against torch in fp64; bf16 keeps eight bits, and the
# weight's gradient is a sum over 60 rows rounded once
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 2e-5), torch.bfloat16: (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-4, 100.0])
def test_norm_and_its_gradients_against_torch_in_fp64(dtype, size):
    x = (size * torch.randn(20, 3, 32)).to(dtype).requires_grad_()
    weight = torch.randn(32).to(dtype).requires_grad_()
    upstream = torch.randn(20, 3, 32).to(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    wanted = F.rms_norm(exact[0], (32,), exact[1], 1e-5)
    wanted.backward(upstream.double())
    output = rms_norm(x, weight, 1e-5)
    output.backward(upstream)
    near, near_sum = TOLERANCES[dtype]
    assert output.dtype == x.grad.dtype == weight.grad.dtype == dtype
    scale = exact[0].grad.abs().max().item()
    torch.testing.assert_close(output.double(), wanted, rtol=near, atol=near)
    torch.testing.assert_close(x.grad.double(), exact[0].grad, rtol=near, atol=near * scale)
    torch.testing.assert_close(weight.grad.double(), exact[1].grad, rtol=near_sum, atol=near_sum * 10)


def test_gradient_in_fp64_by_differences():
    x, weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.rand(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight.requires_grad_()))


def test_rows_of_zeros_stay_zeros_with_finite_gradients():
    x = torch.zeros(2, 8, requires_grad=True)
    output = rms_norm(x, torch.ones(8), 1e-5)
    output.sum().backward()
    assert torch.equal(output.detach(), torch.zeros(2, 8))
    assert torch.isfinite(x.grad).all()
