"""linear_token_log_probs against the logits in fp64."""

from pathlib import Path

import pytest
import torch

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels, linear, linear_token_log_probs, token_log_probs
from megatron_octo.ops.products import Products
from tests.ops.cases import expected, upstream

# From hidden states: products have 64 terms and fp32 sums; 16-bit inputs are rounded before the reference sees them.
FORWARD_ATOL = 1e-4
GRAD_RTOL = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
needs_bf16 = pytest.mark.skipif(
    "avx512_bf16" not in Path("/proc/cpuinfo").read_text().split(),
    reason="this CPU has no bf16 arithmetic (avx512_bf16)",
)


def make(tokens=13, hidden=64, vocabulary=1001, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):  # the generator's device, so that all devices get the same values
        h = torch.randn(tokens, hidden, generator=generator).to(dtype)
        w = (0.3 * torch.randn(vocabulary, hidden, generator=generator)).to(dtype)
        targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return tuple(x.to(torch.get_default_device()) for x in (h, w, targets))


def reference_of(h, w, targets, weights, temperature=1.0):
    logits = h.double() @ w.double().t()
    reference = expected(logits, targets, weights, temperature)
    return reference, reference.grad @ w.double(), reference.grad.t() @ h.double()


def close(actual, wanted, rtol):
    scale = float(wanted.abs().max())
    torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("dtype", GRAD_RTOL, ids=str)
@pytest.mark.parametrize(("chunk_tokens", "vocabulary_block"), [(4096, 8192), (5, 300), (13, 1001), (1, 7)])
def test_forward_and_backward(dtype, chunk_tokens, vocabulary_block):
    h, w, targets = make(dtype=dtype)
    weights = upstream(13)
    reference, grad_h, grad_w = reference_of(h, w, targets, weights, temperature=0.8)
    h, w = h.requires_grad_(), w.requires_grad_()
    result = linear_token_log_probs(
        h,
        w,
        targets,
        temperature=0.8,
        return_entropy=True,
        chunk_tokens=chunk_tokens,
        vocabulary_block=vocabulary_block,
    )
    for name in ("log_probs", "entropy", "log_sum_exp"):
        torch.testing.assert_close(
            getattr(result, name).double(), getattr(reference, name), rtol=1e-6, atol=FORWARD_ATOL
        )
    torch.autograd.backward((result.log_probs, result.entropy, result.log_sum_exp), weights)
    assert h.grad.dtype == w.grad.dtype == dtype
    close(h.grad, grad_h, GRAD_RTOL[dtype])
    close(w.grad, grad_w, GRAD_RTOL[dtype])


@pytest.mark.parametrize("chunk_tokens", [4096, 5])
def test_bf16_on_a_cpu_without_bf16_arithmetic(chunk_tokens, monkeypatch):
    monkeypatch.setattr(kernels, "has_bf16_product", lambda: False)
    test_forward_and_backward(torch.bfloat16, chunk_tokens, 300)


@pytest.fixture
def as_on_cuda(emulated_operators, monkeypatch):
    """Take the code path of CUDA tensors, with emulated kernels, and products of fp32 copies in place of cuBLAS's."""
    real_mm, real_addmm = torch.mm, torch.addmm

    class OnCuda(Products):
        def __init__(self, hidden_TH, tile_values):
            super().__init__(hidden_TH, tile_values)
            self.takes_16_bits = hidden_TH.dtype in (torch.bfloat16, torch.float16)
            self.hidden_TH = self.factor(hidden_TH)

    def mm(a, b, *, out_dtype=None, out=None):
        result = real_mm(a, b) if out_dtype is None else real_mm(a.to(out_dtype), b.to(out_dtype))
        return result if out is None else out.copy_(result)

    def addmm(total, a, b, *, out_dtype, out):
        return out.copy_(real_addmm(total, a.to(out_dtype), b.to(out_dtype)))

    monkeypatch.setattr(kernels, "has_bf16_product", lambda: False)
    monkeypatch.setattr(linear, "Products", OnCuda)
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch.ops, "octo", emulated_operators)


@pytest.mark.parametrize("dtype", GRAD_RTOL, ids=str)
@pytest.mark.parametrize(("chunk_tokens", "vocabulary_block"), [(4096, 2048), (5, 300), (4, 77)])
def test_as_on_cuda(dtype, chunk_tokens, vocabulary_block, as_on_cuda):
    test_forward_and_backward(dtype, chunk_tokens, vocabulary_block)
    if chunk_tokens != 5:
        return
    for way in ("transposed", "every other column", "one row expanded"):
        test_strides(dtype, way)
    test_temperature_of_each_token_and_a_peaked_row(dtype)


def test_other_cases_as_on_cuda(as_on_cuda):
    test_results_equal_token_log_probs_of_the_logits()
    test_the_weights_gradient_is_summed_in_fp32_and_rounded_once()
    test_ignored_tokens_are_left_out_of_the_products()
    test_no_tokens(torch.bfloat16)
    test_a_tied_weight_gets_both_gradients()
    for used in ("hidden", "weight"):
        test_gradient_of_one_factor_alone(used)


@pytest.mark.parametrize(("m", "k", "n"), [(13, 66, 100), (130, 4100, 65), (1, 2, 1), (64, 2048, 64)])
@needs_bf16
def test_bf16_products_have_fp32_results(m, k, n):
    assert kernels.has_bf16_product()  # the CPU has bf16 arithmetic, so library and torch must offer it
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, k, generator=generator).bfloat16() for size in (m, n))
    wanted = a.double() @ b.double().t()
    out = torch.full((m, n), torch.nan)
    kernels.bf16_product(a, b, out, b_is_transposed=True)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5 * k**0.5)
    # add to the result, with rows of a larger matrix
    wide = torch.zeros(k, n + 3, dtype=torch.bfloat16)
    wide[:, :n] = b.t()
    kernels.bf16_product(a, wide[:, :n], out, add=True)
    torch.testing.assert_close(out.double(), 2 * wanted, rtol=1e-5, atol=2e-5 * k**0.5)


@pytest.mark.parametrize("dtype", GRAD_RTOL, ids=str)
@pytest.mark.parametrize("way", ["transposed", "every other column", "one row expanded"])
def test_strides(dtype, way):
    """Strides of hidden states and weight. The chunk is odd, and the last block is a single row."""
    h, w, targets = make(hidden=128, dtype=dtype)
    views = {
        "transposed": lambda x: x.t().contiguous().t(), "every other column": lambda x: x[:, ::2],
        "one row expanded": lambda x: x[:1].expand(x.shape),
    }  # fmt: skip
    weights = upstream(13)
    h, w = views[way](h), views[way](w)
    reference, grad_h, grad_w = reference_of(h, w, targets, weights)
    h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
    result = linear_token_log_probs(h, w, targets, return_entropy=True, chunk_tokens=5, vocabulary_block=250)
    torch.testing.assert_close(result.log_probs.double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    outputs = (result.log_probs, result.entropy, result.log_sum_exp)
    grads = torch.autograd.grad(outputs, (h, w), weights)
    for actual, wanted in zip(grads, (grad_h, grad_w), strict=True):
        close(actual, wanted, GRAD_RTOL[dtype])


@pytest.mark.parametrize("dtype", GRAD_RTOL, ids=str)
def test_temperature_of_each_token_and_a_peaked_row(dtype):
    h, w, targets = make(dtype=dtype)
    h[3] = 8 * w[targets[3]]  # a probability near 1, logits up to about 100
    temperature = torch.linspace(0.5, 3.0, 13)
    weights = upstream(13)
    reference, grad_h, _ = reference_of(h, w, targets, weights, temperature)
    h = h.requires_grad_()
    result = linear_token_log_probs(h, w, targets, temperature=temperature, return_entropy=True)
    assert result.log_probs[3] > -1e-3
    torch.testing.assert_close(result.log_probs.double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    torch.autograd.backward((result.log_probs, result.entropy, result.log_sum_exp), weights)
    close(h.grad, grad_h, GRAD_RTOL[dtype])


@needs_bf16
def test_a_row_is_bit_identical_in_any_batch_with_bf16_product():
    assert kernels.has_bf16_product()  # the CPU has bf16 arithmetic, so library and torch must offer it
    h, w, targets = make(tokens=70, dtype=torch.bfloat16)

    def run(rows, chunk_tokens=4096):
        x = h[rows].clone().requires_grad_()
        result = linear_token_log_probs(x, w, targets[rows], return_entropy=True, chunk_tokens=chunk_tokens)
        (result.log_probs + 0.5 * result.entropy).sum().backward()
        return result.log_probs.detach(), result.entropy.detach(), x.grad

    whole = run(slice(None))
    for row in (0, 33, 69):
        for together, alone in zip(whole, run(slice(row, row + 1)), strict=True):
            assert torch.equal(together[row], alone[0])
    assert all(torch.equal(a, b) for a, b in zip(whole, run(slice(None), chunk_tokens=33), strict=True))


def test_results_equal_token_log_probs_of_the_logits():
    h, w, targets = make()
    by_logits = token_log_probs(h @ w.t(), targets, return_entropy=True)
    by_linear = linear_token_log_probs(h, w, targets, return_entropy=True, vocabulary_block=100)
    torch.testing.assert_close(by_linear.log_probs, by_logits.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_linear.entropy, by_logits.entropy, rtol=1e-5, atol=1e-5)
    assert linear_token_log_probs(h, w, targets).entropy is None


def test_the_weights_gradient_is_summed_in_fp32_and_rounded_once():
    """4,096 tokens in 64 chunks, bf16: a bf16 sum would lose the contribution of one chunk after the other."""
    h, w, targets = make(tokens=4096, hidden=32, vocabulary=50, dtype=torch.bfloat16)
    h = h.abs()  # no cancellation: each chunk adds a little to a growing sum
    weights = (torch.ones(4096), torch.zeros(4096), torch.zeros(4096))
    _, _, grad_w = reference_of(h, w, targets, weights)
    w = w.requires_grad_()
    linear_token_log_probs(h, w, targets, chunk_tokens=64).log_probs.sum().backward()
    close(w.grad, grad_w, 2**-8)


def test_ignored_tokens_are_left_out_of_the_products():
    h, w, targets = make()
    targets[[0, 5, 12]] = -100
    h[[0, 5, 12]] = torch.nan  # never read
    h, w = h.requires_grad_(), w.requires_grad_()
    result = linear_token_log_probs(h, w, targets, return_entropy=True)
    assert result.log_probs.isfinite().all() and not result.log_probs[[0, 5, 12]].any()
    (result.log_probs + result.entropy + result.log_sum_exp).sum().backward()
    assert w.grad.isfinite().all() and not h.grad[[0, 5, 12]].any() and h.grad[1].any()
    kept, temperature = targets != -100, torch.linspace(0.7, 3.0, 13)
    ones = (torch.ones(10), torch.zeros(10), torch.zeros(10))
    reference, *_ = reference_of(h[kept], w, targets[kept], ones, temperature[kept])
    result = linear_token_log_probs(h, w, targets, temperature=temperature)
    torch.testing.assert_close(result.log_probs[kept].double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    none = linear_token_log_probs(h, w, torch.full((13,), -100))
    assert not none.log_probs.any() and none.log_probs.shape == (13,)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", GRAD_RTOL, ids=str)
@pytest.mark.parametrize("skip_ignored", [True, False])
@pytest.mark.parametrize("chunk_tokens", [4096, 5])
def test_values_of_ignored_tokens_reach_no_gradient(value, dtype, skip_ignored, chunk_tokens):
    """The gradients are the same whatever the ignored tokens hold."""
    h, w, targets = make(dtype=dtype)
    kept = torch.ones(13, dtype=torch.bool)
    kept[[0, 5, 12]] = False
    targets[~kept] = -100
    gradients = []
    for ignored_value in (0.0, value):
        factors = [h.masked_fill(~kept[:, None], ignored_value).requires_grad_(), w.clone().requires_grad_()]
        options = {"return_entropy": True, "chunk_tokens": chunk_tokens, "vocabulary_block": 300}
        result = linear_token_log_probs(*factors, targets, skip_ignored=skip_ignored, **options)
        weights = [weight.masked_fill(~kept, value) for weight in upstream(13)]
        torch.autograd.backward([result.log_probs, result.entropy, result.log_sum_exp], weights)
        assert not factors[0].grad[~kept].any() and result.log_probs.isfinite().all()
        gradients.append([factor.grad for factor in factors])
    assert gradients[0][1].isfinite().all() and gradients[0][0][kept].any()
    for with_zeros, with_value in zip(*gradients, strict=True):
        assert torch.equal(with_zeros, with_value)


def test_a_nan_weight_gives_ignored_tokens_no_gradient():
    h, w, targets = make()
    targets[3], w[7, 2] = -100, torch.nan
    for skip_ignored in (True, False):
        x = h.clone().requires_grad_()
        linear_token_log_probs(x, w, targets, skip_ignored=skip_ignored).log_probs.sum().backward()
        assert not x.grad[3].any() and x.grad[4].isnan().any()


def test_hidden_states_with_zeros_come_a_few_columns_at_a_time():
    """As on a GPU, where a full copy is avoided: the pieces fit the tile, come in order and hold the same numbers."""
    h, *_ = make(tokens=6, hidden=50, dtype=torch.bfloat16)
    ignored = torch.tensor([False, True, False, False, True, False])
    h[ignored] = torch.nan
    products = Products(h, 6 * 10)  # 60 fp32 values hold 6 x 20 16-bit values
    products.hidden_TH = h
    for rows in (slice(0, 6), slice(1, 3)):
        pieces = list(products.hidden_with_zeros(rows, ignored))
        if rows.start == 0:
            assert [columns.start for columns, _ in pieces] == [0, 20, 40]
        for columns, clean in products.hidden_with_zeros(rows, ignored):
            assert torch.equal(clean, h.masked_fill(ignored[:, None], 0.0)[rows, columns])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tokens(dtype):
    h, w, _ = make(tokens=0, dtype=dtype)
    h, w = h.requires_grad_(), w.requires_grad_()
    linear_token_log_probs(h, w, torch.empty(0, dtype=torch.int64)).log_probs.sum().backward()
    assert h.grad.shape == (0, 64) and not w.grad.any()


def test_a_tied_weight_gets_both_gradients():
    """The embedding is the output weight."""
    _, w, targets = make()
    w = w.requires_grad_()
    tokens = targets.roll(1)
    linear_token_log_probs(torch.nn.functional.embedding(tokens, w), w, targets).log_probs.sum().backward()
    x = w.detach().double().requires_grad_()
    logits = torch.nn.functional.embedding(tokens, x) @ x.t()
    torch.log_softmax(logits, -1).gather(1, targets[:, None]).sum().backward()
    close(w.grad, x.grad, 1e-5)


@pytest.mark.parametrize("used", ["hidden", "weight"])
def test_gradient_of_one_factor_alone(used):
    h, w, targets = make()
    wanted = (h if used == "hidden" else w).requires_grad_()
    linear_token_log_probs(h, w, targets).log_probs.sum().backward()
    assert wanted.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_compile(dtype):
    h, w, targets = make(dtype=dtype)

    def loss_of(h, w):
        result = linear_token_log_probs(h, w, targets, return_entropy=True, vocabulary_block=300, skip_ignored=False)
        return (result.log_probs + result.entropy).sum()

    losses, gradients = [], []
    for function in (loss_of, torch.compile(loss_of, backend="aot_eager", fullgraph=True)):
        factors = [x.clone().requires_grad_() for x in (h, w)]
        losses.append(function(*factors))
        losses[-1].backward()
        gradients.append([x.grad for x in factors])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0])


@needs_bf16
def test_bf16_product_passes_opcheck():
    assert kernels.has_bf16_product()  # the CPU has bf16 arithmetic, so library and torch must offer it
    a, b = torch.randn(3, 4).bfloat16(), torch.randn(4, 5).bfloat16()
    torch.library.opcheck(torch.ops.octo.bf16_product.default, (a, b, False, True, torch.zeros(3, 5)))


def test_gradcheck():
    h = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, -100, 5])

    def function(h, w):
        result = linear_token_log_probs(
            h, w, targets, temperature=0.7, return_entropy=True, chunk_tokens=2, vocabulary_block=4
        )
        return result.log_probs, result.entropy, result.log_sum_exp

    assert torch.autograd.gradcheck(function, (h, w))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_VH": torch.zeros(5, 3)}, "give (tokens, hidden) and (vocabulary, hidden)"),
        ({"weight_VH": torch.zeros(5, 4, dtype=torch.bfloat16)}, "give one floating-point dtype"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1.0"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    given = {
        "hidden_TH": torch.zeros(2, 4), "weight_VH": torch.zeros(5, 4), "targets_T": torch.zeros(2, dtype=torch.int64),
    }  # fmt: skip
    with pytest.raises(OperatorError) as error:
        linear_token_log_probs(**(given | change))
    assert message in str(error.value)
