"""Cases that need a real GPU: more than 2^31 values, cuBLAS products, memory, no synchronisation."""

import pytest
import torch

from megatron_octo.ops import linear_token_log_probs, token_log_probs
from tests.ops.cases import FORWARD_ATOL, expected, make, upstream

pytestmark = pytest.mark.gpu


def test_more_than_2_to_the_31_values():
    """17,000 x 128,256 bf16: 4.4 GB. Rows beyond the 2^31st value give the same results as alone."""
    tokens, vocabulary = 17_000, 128_256
    assert tokens * vocabulary > 2**31
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16)
    targets = torch.randint(vocabulary, (tokens,))
    x = logits.requires_grad_()
    result = token_log_probs(x, targets, return_entropy=True)
    result.log_probs.sum().backward()
    rows = slice(tokens - 2, tokens)
    weights = (torch.ones(2), torch.zeros(2), torch.zeros(2))
    reference = expected(logits[rows], targets[rows], weights)
    torch.testing.assert_close(result.log_probs[rows].double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    torch.testing.assert_close(x.grad[rows].double(), reference.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_linear_with_many_tiles(dtype):
    generator = torch.Generator(device="cuda").manual_seed(0)
    h = torch.randn(300, 512, generator=generator).to(dtype)
    w = (0.1 * torch.randn(20_001, 512, generator=generator)).to(dtype)
    targets = torch.randint(20_001, (300,), generator=generator)
    targets[::7] = -100
    kept = targets != -100
    weights = tuple(x[kept] for x in upstream(300))
    reference = expected(h[kept].double() @ w.double().t(), targets[kept], weights)
    h, w = h.requires_grad_(), w.requires_grad_()
    result = linear_token_log_probs(h, w, targets, return_entropy=True, chunk_tokens=128, vocabulary_block=4096)
    for name in ("log_probs", "entropy", "log_sum_exp"):
        actual = getattr(result, name)[kept].double()
        torch.testing.assert_close(actual, getattr(reference, name), rtol=1e-6, atol=1e-4)
    outputs = tuple(getattr(result, name)[kept] for name in ("log_probs", "entropy", "log_sum_exp"))
    torch.autograd.backward(outputs, weights)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-8}[dtype]
    for actual, wanted in (
        (h.grad[kept], reference.grad @ w.double()),
        (w.grad, reference.grad.t() @ h[kept].double()),
    ):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(actual.double(), wanted.detach(), rtol=tolerance, atol=tolerance * scale)


def test_memory_of_the_linear_form():
    """As counted by tests/ops/test_memory.py, at an eighth of its vocabulary: PyTorch makes no hidden copies."""
    h = torch.randn(8192, 4096, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(16_384, 4096, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(16_384, (8192,))

    def run():
        result = linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False)
        return torch.autograd.grad(result.log_probs.sum() + result.entropy.sum(), (h, w))

    run()  # cuBLAS allocates its workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    beyond_the_weight_gradient = torch.cuda.max_memory_allocated() - before - w.numel() * 2
    # 0.22 GB: 134 MB of hidden gradient, 34 of tile, 17 of its gradient, 34 of a block's gradient
    assert beyond_the_weight_gradient < 0.23e9


def test_nothing_waits_for_the_device():
    """Forward and backward of both forms make no synchronizing call."""
    logits, targets = make("normal", 6, 1000, torch.bfloat16)
    x = logits.requires_grad_()
    token_log_probs(x, targets, return_entropy=True).log_probs.sum().backward()
    h, w = (torch.randn(size, 64, dtype=torch.bfloat16, requires_grad=True) for size in (6, 1000))
    linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False).log_probs.sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = token_log_probs(x, targets, temperature=0.9, return_entropy=True)
        (result.log_probs.sum() + result.entropy.sum()).backward()
        linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False).log_probs.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
