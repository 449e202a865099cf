import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from megatron_octo.model.rotary import rotate


def angles(sequence: int, head_dim: int) -> torch.Tensor:
    half = torch.outer(torch.arange(sequence).float(), 10000.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim))
    return torch.cat([half, half], dim=-1)[:, None, None, :]


def test_rotation_is_that_of_transformers():
    query, key = torch.randn(7, 2, 4, 16), torch.randn(7, 2, 2, 16)
    turned = angles(7, 16)
    cos_BSD, sin_BSD = (x.squeeze(2).squeeze(1)[None] for x in (turned.cos(), turned.sin()))
    expected = apply_rotary_pos_emb(query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), cos_BSD, sin_BSD)
    for x, want_BNSD in zip((query, key), expected, strict=True):
        torch.testing.assert_close(rotate(x, turned), want_BNSD.permute(2, 0, 1, 3), rtol=1e-6, atol=1e-6)


def test_gradient_in_fp64():
    x = torch.randn(3, 2, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles(3, 8)), x)


def test_strided_input_is_left_alone_and_the_output_is_contiguous():
    whole = torch.randn(5, 2, 3, 24)
    before = whole.clone()
    x = whole[..., 8:16]
    assert not x.is_contiguous()
    turned = rotate(x, angles(5, 8))
    assert turned.is_contiguous()
    assert torch.equal(turned, rotate(x.contiguous(), angles(5, 8)))
    assert torch.equal(whole, before)


def test_bf16_is_turned_in_bf16():
    x = torch.randn(5, 2, 3, 8)
    turned = rotate(x.bfloat16(), angles(5, 8))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), rotate(x, angles(5, 8)), rtol=2e-2, atol=2e-2)


def test_angles_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"angles of shape \(4, 1, 1, 8\) for an input of shape \(5, 2, 3, 8\)"):
        rotate(torch.randn(5, 2, 3, 8), angles(4, 8))
