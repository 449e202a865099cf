"""The same cases on a GPU, and sizes beyond 2^31 values. `bash tests/gpu/run.sh` runs these and the benchmark."""

import pytest
import torch

from megatron_octo.ops import kernels, linear_token_log_probs, token_log_probs
from tests.ops.cases import DTYPES, FORWARD_ATOL, KINDS, VOCABULARIES, check_gradient, expected, make, upstream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = "cuda"


@pytest.fixture(autouse=True)
def compiled():
    assert kernels.has_cuda_kernels(), "csrc is not built with CUDA: `python setup.py build_ext --inplace`"


def check(logits, targets, temperature=1.0):
    weights = tuple(w.to(CUDA) for w in upstream(len(targets)))
    logits, targets = logits.to(CUDA), targets.to(CUDA)
    reference = expected(logits, targets, weights, temperature)
    x = logits.detach().requires_grad_()
    result = token_log_probs(x, targets, temperature=temperature, return_entropy=True)
    for name, rtol in (("log_probs", 0.0), ("entropy", 0.0), ("log_sum_exp", 1e-6)):
        actual, wanted = getattr(result, name).double(), getattr(reference, name)
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=FORWARD_ATOL)
    (grad,) = torch.autograd.grad((result.log_probs, result.entropy, result.log_sum_exp), x, weights)
    check_gradient(grad, reference, logits, targets, weights, temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(kind, vocabulary, dtype):
    check(*make(kind, 6, vocabulary, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_one_row_and_none(dtype):
    base, targets = make("normal", 8, 1000, dtype)
    for view in (base.t().contiguous().t(), base[:1].expand(8, 1000), torch.stack([base, base], 1).flatten(0, 1)[::2]):
        check(view.to(CUDA), targets)
    check(base[:1], targets[:1])
    none = token_log_probs(base[:0].to(CUDA), targets[:0].to(CUDA), return_entropy=True)
    assert none.log_probs.shape == (0,)


@pytest.mark.parametrize("temperature", [0.7, "each"])
def test_temperature(temperature):
    value = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0, 3.0], device=CUDA) if temperature == "each" else temperature
    check(*make("normal", 6, 1000, torch.float32), value)


@pytest.mark.parametrize("used", ["log_probs", "entropy", "log_sum_exp"])
def test_each_result_alone(used):
    logits, targets = (x.to(CUDA) for x in make("normal", 6, 1001, torch.float32))
    zeros, ones = torch.zeros(6, device=CUDA), torch.ones(6, device=CUDA)
    weights = tuple(ones if name == used else zeros for name in ("log_probs", "entropy", "log_sum_exp"))
    x = logits.requires_grad_()
    getattr(token_log_probs(x, targets, return_entropy=True), used).sum().backward()
    check_gradient(x.grad, expected(logits, targets, weights), logits.detach(), targets, weights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1000, 1001])
def test_in_place_is_the_same_gradient(dtype, vocabulary):
    logits, targets = (x.to(CUDA) for x in make("normal", 6, vocabulary, dtype))
    gradients = []
    for in_place in (False, True):
        x = logits.clone().requires_grad_()
        result = token_log_probs(x * 1.0, targets, return_entropy=True, in_place_backward=in_place)
        (result.log_probs + 0.5 * result.entropy).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_rows_of_minus_infinity_and_targets_outside():
    logits, targets = (x.to(CUDA) for x in make("normal", 4, 1000, torch.bfloat16))
    targets[1] = 1000
    logits[2] = -torch.inf
    result = token_log_probs(logits, targets, return_entropy=True)
    assert result.log_probs[1] == -torch.inf and result.log_probs[[0, 3]].isfinite().all()
    assert result.log_sum_exp[2] == -torch.inf
    assert result.log_probs.grad_fn is None


def test_ignored_and_spoilt_rows():
    logits, targets = (x.to(CUDA) for x in make("normal", 6, 1000, torch.bfloat16))
    targets[1] = -100
    logits[1] = torch.nan
    logits[2, 7] = torch.nan
    x = logits.requires_grad_()
    result = token_log_probs(x, targets, return_entropy=True)
    assert result.log_probs[1] == 0 and result.log_probs[2].isnan() and result.log_probs[[0, 3, 4, 5]].isfinite().all()
    result.log_probs[[0, 1, 3]].sum().backward()
    assert not x.grad[1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1000, 128_256, 128_257])
def test_a_row_is_the_same_bits_in_any_batch(dtype, vocabulary):
    logits, targets = (x.to(CUDA) for x in make("normal", 7, vocabulary, dtype))

    def run(rows):
        x = logits[rows].clone().requires_grad_()
        result = token_log_probs(x, targets[rows], return_entropy=True)
        (result.log_probs + 0.5 * result.entropy).sum().backward()
        return result.log_probs.detach(), result.entropy.detach(), x.grad

    whole = run(slice(None))
    for row in (0, 3, 6):
        for together, alone in zip(whole, run(slice(row, row + 1)), strict=True):
            assert torch.equal(together[row], alone[0])


def test_more_than_2_to_the_31_values():
    """17,000 x 128,256 bf16: 4.4 GB. Rows beyond the 2^31st value are what they are alone."""
    tokens, vocabulary = 17_000, 128_256
    assert tokens * vocabulary > 2**31
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16, device=CUDA)
    targets = torch.randint(vocabulary, (tokens,), device=CUDA)
    x = logits.requires_grad_()
    result = token_log_probs(x, targets, return_entropy=True)
    result.log_probs.sum().backward()
    rows = slice(tokens - 2, tokens)
    weights = (torch.ones(2, device=CUDA), torch.zeros(2, device=CUDA), torch.zeros(2, device=CUDA))
    reference = expected(logits[rows], targets[rows], weights)
    torch.testing.assert_close(result.log_probs[rows].double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    torch.testing.assert_close(x.grad[rows].double(), reference.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_linear(dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator(device=CUDA).manual_seed(0)
    h = torch.randn(300, 512, device=CUDA, generator=generator).to(dtype)
    w = (0.1 * torch.randn(20_001, 512, device=CUDA, generator=generator)).to(dtype)
    targets = torch.randint(20_001, (300,), device=CUDA, generator=generator)
    targets[::7] = -100
    kept = targets != -100
    weights = tuple(x.to(CUDA)[kept] for x in upstream(300))
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


def test_nothing_waits_for_the_device():
    """Forward and backward of both forms make no synchronising call."""
    logits, targets = (x.to(CUDA) for x in make("normal", 6, 1000, torch.bfloat16))
    x = logits.requires_grad_()
    token_log_probs(x, targets, return_entropy=True).log_probs.sum().backward()
    h, w = (torch.randn(size, 64, dtype=torch.bfloat16, device=CUDA, requires_grad=True) for size in (6, 1000))
    linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False).log_probs.sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = token_log_probs(x, targets, temperature=0.9, return_entropy=True)
        (result.log_probs.sum() + result.entropy.sum()).backward()
        linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False).log_probs.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
