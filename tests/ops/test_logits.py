"""token_log_probs against torch's log_softmax in fp64."""

import pytest
import torch

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels, token_log_probs
from megatron_octo.ops.shard import merge_stats
from tests.ops.cases import DTYPES, FORWARD_ATOL, KINDS, VOCABULARIES, check_gradient, expected, make, upstream


def check(logits, targets, temperature=1.0, tokens=None):
    """Forward and backward of all three results at once."""
    weights = upstream(len(targets))
    reference = expected(logits, targets, weights, temperature)
    x = logits.detach().requires_grad_()
    result = token_log_probs(x, targets, temperature=temperature, return_entropy=True)
    torch.testing.assert_close(result.log_probs.double(), reference.log_probs, rtol=0, atol=FORWARD_ATOL)
    torch.testing.assert_close(result.entropy.double(), reference.entropy, rtol=0, atol=FORWARD_ATOL)
    torch.testing.assert_close(result.log_sum_exp.double(), reference.log_sum_exp, rtol=1e-6, atol=FORWARD_ATOL)
    assert result.log_probs.dtype == torch.float32
    outputs = (result.log_probs, result.entropy, result.log_sum_exp)
    (grad,) = torch.autograd.grad(outputs, x, weights)
    check_gradient(grad, reference, logits, targets, weights, temperature)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(kind, vocabulary, dtype, implementation):
    if implementation == "plain" and vocabulary > 32_000:
        pytest.skip("plain PyTorch is tested up to 32,000: it has no blocks to get wrong")
    check(*make(kind, 6, vocabulary, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_row_and_none(dtype, implementation):
    check(*make("normal", 1, 1000, dtype))
    logits = torch.empty(0, 1000, dtype=dtype, requires_grad=True)
    result = token_log_probs(logits, torch.empty(0, dtype=torch.int64), return_entropy=True)
    assert result.log_probs.shape == result.entropy.shape == (0,)
    result.log_probs.sum().backward()
    assert logits.grad.shape == (0, 1000)


@pytest.mark.parametrize("temperature", [1e-6, 1e-5, 1e-3, 1e3, 1e6, "each"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_lowest_and_the_highest_temperature(dtype, temperature, implementation):
    """Against fp64: log-probs in the millions within their own rounding, gradients of any size, and never NaN."""
    logits, targets = make("normal", 6, 1000, dtype)
    scale = torch.logspace(-6, 6, 6) if temperature == "each" else temperature
    weights = upstream(6)
    reference = expected(logits, targets, weights, scale)
    x = logits.clone().requires_grad_()
    result = token_log_probs(x, targets, temperature=scale, return_entropy=True)
    for name in ("log_probs", "log_sum_exp", "entropy"):
        actual, wanted = getattr(result, name).double(), getattr(reference, name)
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    torch.autograd.backward([result.log_probs, result.entropy, result.log_sum_exp], weights)
    largest = torch.finfo(dtype).max
    wanted = reference.grad.where(reference.grad.abs() <= largest, reference.grad.sign() * torch.inf)
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # one subnormal step
    atol = max(least, 1e-6 * float(reference.grad.abs().max()))
    torch.testing.assert_close(x.grad.double(), wanted, rtol=1e-2, atol=atol)


@pytest.mark.parametrize(
    "temperature",
    [1e-40, 1e-320, 1e-7, 0.0, 0, -0.0, -1, 1e7, 1e40, 10**30, 10**5000, torch.inf, -torch.inf, torch.nan, True, "1"],
    ids=lambda value: (
        f"{type(value).__name__}{value!s:.8}" if not isinstance(value, int) else f"int{value.bit_length()}"
    ),
)
@pytest.mark.parametrize("form", ["number", "tensor", "each"])
def test_a_temperature_outside_the_limits_is_refused(temperature, form):
    if form != "number" and (isinstance(temperature, str) or (type(temperature) is int and abs(temperature) >= 2**63)):
        pytest.skip("no tensor can hold it")
    if form != "number":
        temperature = torch.tensor(temperature)
    if form == "each":
        temperature = torch.stack([temperature, torch.ones_like(temperature)])
    with pytest.raises(OperatorError, match="temperature"):
        token_log_probs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), temperature=temperature)


def test_an_invalid_temperature_that_cannot_be_checked_gives_nan():
    """Under torch.compile, as on a GPU, where the check would wait for the device."""
    targets = torch.zeros(3, dtype=torch.int64)

    def log_probs(temperature):
        return token_log_probs(torch.eye(3), targets, temperature=temperature).log_probs

    compiled = torch.compile(log_probs, backend="aot_eager", fullgraph=True)
    assert compiled(torch.tensor([1.0, 1e-40, 2.0])).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_ignored_tokens_reach_no_result(dtype, in_place, value, implementation):
    logits, targets = make("normal", 4, 1000, dtype)
    logits[1], targets[1] = value, -100
    x = (logits.clone().requires_grad_() * 1.0) if in_place else logits.clone().requires_grad_()
    x.retain_grad()
    result = token_log_probs(x, targets, return_entropy=True, in_place_backward=in_place)
    weights = [weight.index_fill(0, torch.tensor([1]), value) for weight in upstream(4)]
    torch.autograd.backward([result.log_probs, result.entropy, result.log_sum_exp], weights)
    for values in (result.log_probs, result.entropy, result.log_sum_exp):
        assert values.isfinite().all() and values[1] == 0
    assert x.grad.isfinite().all() and not x.grad[1].any() and x.grad[0].any()


@pytest.mark.parametrize("temperature", [0.7, 1.3, 2.0, "each"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_temperature(kind, dtype, temperature, implementation):
    logits, targets = make(kind, 6, 1000, dtype)
    check(logits, targets, torch.linspace(0.7, 3.0, 6) if temperature == "each" else temperature)


def test_each_result_alone_and_together(implementation):
    """The gradient is that of the results that were used, whichever were computed."""
    logits, targets = make("normal", 6, 1000, torch.float32)
    weights = upstream(6)
    zero = torch.zeros(6)
    for used in ("log_probs", "entropy", "log_sum_exp"):
        x = logits.clone().requires_grad_()
        result = token_log_probs(x, targets, return_entropy=True)
        place = ("log_probs", "entropy", "log_sum_exp").index(used)
        (grad,) = torch.autograd.grad(getattr(result, used), x, weights[place])
        alone = tuple(w if i == place else zero for i, w in enumerate(weights))
        torch.testing.assert_close(grad.double(), expected(logits, targets, alone).grad, rtol=1e-5, atol=1e-7)
    assert token_log_probs(logits, targets).entropy is None


@pytest.mark.parametrize("kind", ["column-major", "every other column", "every other row", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(kind, dtype, implementation):
    base, targets = make("normal", 8, 1000, dtype)
    views = {
        "column-major": base.t().contiguous().t(),
        "every other column": torch.stack([base, base], dim=2).flatten(1)[:, ::2],
        "every other row": torch.stack([base, base], dim=1).flatten(0, 1)[::2],
        "expanded": base[:1].expand(8, 1000),
    }
    check(views[kind], targets)


def test_an_upstream_gradient_of_stride_0(implementation):
    """`sum().backward()` passes such a gradient."""
    logits, targets = make("normal", 6, 1000, torch.float32)
    x = logits.requires_grad_()
    token_log_probs(x, targets).log_probs.sum().backward()
    reference = expected(logits, targets, (torch.ones(6), torch.zeros(6), torch.zeros(6)))
    torch.testing.assert_close(x.grad.double(), reference.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("logit", "temperature"), [(6.9, 1.0), (9.0, 1.0), (12.0, 1.0), (28.3, 0.7), (97.3, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_at_a_probability_near_1(dtype, logit, temperature, implementation):
    """p of 0.9, 0.99 and more: in another project's kernel, which formed 1 - p in bf16, it was 100% wrong.

    If logits were scaled before they are subtracted, the difference at the maximum would not be 0 but the rounding of a
    product, 1e-5 at 97.3.
    """
    logits = torch.zeros(1, 100, dtype=dtype)
    logits[0, 3] = logit
    x = logits.requires_grad_()
    token_log_probs(x, torch.tensor([3]), temperature=temperature).log_probs.sum().backward()
    reference = expected(logits, torch.tensor([3]), (torch.ones(1), torch.zeros(1), torch.zeros(1)), temperature)
    # 2e-7: rounding of an fp32 sum of 1 and a small number
    assert float(x.grad[0, 3]) == pytest.approx(float(reference.grad[0, 3]), rel=2**-8, abs=2e-7)


def test_ignored_tokens_give_zero_and_no_gradient(implementation):
    logits, targets = make("normal", 6, 1000, torch.bfloat16)
    ignored = targets.clone()
    ignored[[1, 4]] = -100
    x = logits.clone().requires_grad_()
    result = token_log_probs(x, ignored, return_entropy=True)
    for values in (result.log_probs, result.entropy, result.log_sum_exp):
        assert values[1] == values[4] == 0.0
    (result.log_probs + result.entropy + result.log_sum_exp).sum().backward()
    assert not x.grad[[1, 4]].any() and x.grad[[0, 2, 3, 5]].any(dim=1).all()
    kept = token_log_probs(logits, targets, return_entropy=True)
    assert torch.equal(result.log_probs[[0, 2, 3, 5]], kept.log_probs[[0, 2, 3, 5]])
    # NaN logits of an ignored token change nothing
    with_nan = logits.clone()
    with_nan[1] = torch.nan
    assert torch.equal(token_log_probs(with_nan, ignored).log_probs, result.log_probs.detach())


def test_nan_and_rows_of_minus_infinity_give_nan(implementation):
    logits, targets = make("normal", 4, 5000, torch.float32)
    logits[0, 4999] = torch.nan
    logits[1] = -torch.inf
    logits[2, targets[2]] = -torch.inf
    result = token_log_probs(logits, targets, return_entropy=True)
    assert result.log_probs[:2].isnan().all() and result.entropy[0].isnan()
    assert result.log_probs[2] == -torch.inf and result.entropy[2].isfinite()
    assert result.log_probs[3].isfinite()


def test_a_target_outside_the_vocabulary_gives_minus_infinity(implementation):
    logits, _ = make("normal", 2, 10, torch.float32)
    assert (token_log_probs(logits, torch.tensor([10, -1])).log_probs == -torch.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_shards_give_the_statistics_of_the_whole(dtype, implementation):
    """Uneven shards, one of them only padding. Padding would win every softmax if it were read; its gradient is 0."""
    logits, targets = make("normal", 5, 1000, dtype)
    targets[3] = -100
    kept, scale = targets != -100, torch.linspace(0.5, 2.0, 5)
    padding = torch.full((5, 3), 1e9 if dtype != torch.float16 else 6e4, dtype=dtype)
    whole = kernels.token_stats(logits, targets, scale, 1000, 0, -100, True)
    bounds = [(0, 640), (640, 640), (640, 1000)]
    parts = [torch.cat([logits[:, first:last], padding], dim=1) for first, last in bounds]
    stats = [
        kernels.token_stats(part, targets, scale, last - first, first, -100, True)
        for part, (first, last) in zip(parts, bounds, strict=True)
    ]
    torch.testing.assert_close(merge_stats(torch.stack(stats), scale)[:, kept], whole[:, kept], rtol=1e-5, atol=1e-5)
    rows = torch.stack([whole[0], whole[1].log(), whole[1].log() - whole[2] / whole[1], *upstream(5)])
    whole_grad = torch.empty_like(logits)
    kernels.token_grad(logits, targets, scale, rows, 1000, 0, -100, whole_grad)
    for part, (first, last) in zip(parts, bounds, strict=True):
        grad = torch.full_like(part, torch.nan)
        kernels.token_grad(part, targets, scale, rows, last - first, first, -100, grad)
        torch.testing.assert_close(grad[:, : last - first], whole_grad[:, first:last], rtol=1e-6, atol=0)
        assert not grad[:, last - first :].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1000, 128_257])
def test_a_row_is_bit_identical_in_any_batch(dtype, vocabulary, implementation):
    """Forward and gradient of a row alone, first, last, at another alignment, and with other threads."""
    if implementation == "plain":
        pytest.skip("plain PyTorch does not promise this: its sums depend on the shape")
    logits, targets = make("normal", 7, vocabulary, dtype)

    def run(rows):
        x = logits[rows].clone().requires_grad_()
        result = token_log_probs(x, targets[rows], return_entropy=True)
        (result.log_probs + 0.5 * result.entropy).sum().backward()
        return result.log_probs.detach(), result.entropy.detach(), x.grad

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = run(slice(None))
        for row in (0, 3, 6):
            for together, alone in zip(whole, run(slice(row, row + 1)), strict=True):
                assert torch.equal(together[row], alone[0])
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(whole, run(slice(None)), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_logits_are_overwritten_only_on_request(implementation):
    logits, targets = make("normal", 4, 1000, torch.bfloat16)
    before = logits.clone()
    x = logits.requires_grad_()
    token_log_probs(x, targets, return_entropy=True).log_probs.sum().backward()
    assert torch.equal(x.detach(), before)
    y = before.clone().requires_grad_()
    z = y * 1.0  # a leaf cannot be overwritten
    pointer = z.data_ptr()
    result = token_log_probs(z, targets, return_entropy=True, in_place_backward=True)
    seen = []
    z.register_hook(lambda grad: seen.append(grad.data_ptr()))
    result.log_probs.sum().backward()
    assert torch.equal(y.grad, x.grad) and seen == [pointer]


def test_overwritten_logits_are_not_used_after_an_in_place_backward(implementation):
    """Autograd raises an error, as for torch's own in-place operations. Each of these once gave wrong gradients."""
    logits, targets = make("normal", 4, 1000, torch.float32)
    x = logits.requires_grad_()
    changed = "modified by an inplace operation"
    twice = token_log_probs(x * 1.0, targets, return_entropy=True, in_place_backward=True)
    torch.autograd.grad(twice.log_probs.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=changed):
        torch.autograd.grad(twice.entropy.sum(), x)
    z = x * 1.0
    first = token_log_probs(z, targets)
    second = token_log_probs(z, targets, in_place_backward=True)
    with pytest.raises(RuntimeError, match=changed):
        (first.log_probs + second.log_probs).sum().backward()
    capped = token_log_probs(x.tanh(), targets, in_place_backward=True)  # tanh keeps its result for its own backward
    with pytest.raises(RuntimeError, match=changed):
        capped.log_probs.sum().backward()


@pytest.mark.parametrize("way", ["column-major", "every other column", "expanded"])
def test_in_place_needs_contiguous_separate_rows(way):
    logits, targets = make("normal", 4, 1000, torch.float32)
    views = {
        "column-major": logits.t().contiguous().t(), "every other column": logits[:, ::2],
        "expanded": logits[:1].expand(4, 1000),
    }  # fmt: skip
    with pytest.raises(OperatorError, match="the gradient needs rows that are contiguous"):
        token_log_probs(views[way], targets, in_place_backward=True)


def test_nothing_is_saved_without_gradients(implementation):
    logits, targets = make("normal", 4, 1000, torch.float32)
    x = logits.requires_grad_()
    with torch.no_grad():
        result = token_log_probs(x, targets, return_entropy=True)
    assert result.log_probs.grad_fn is None and result.entropy.grad_fn is None


def test_gradcheck_of_the_plain_implementation():
    """Finite differences in fp64: log-probs, entropy and log-sum-exp at once, with a temperature per token."""
    logits = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, -100, 5])
    temperature = torch.tensor([0.5, 1.0, 1.0, 3.0], dtype=torch.float64)

    def function(x):
        result = token_log_probs(x, targets, temperature=temperature, return_entropy=True)
        return result.log_probs, result.entropy, result.log_sum_exp

    assert torch.autograd.gradcheck(function, (logits,))


def test_compiled_operators_pass_opcheck():
    logits, targets = make("normal", 4, 100, torch.bfloat16)
    assert kernels.has_library()
    scale, rows, out = torch.ones(4), torch.rand(6, 4), torch.empty_like(logits)
    torch.library.opcheck(torch.ops.octo.token_stats.default, (logits, targets, scale, 100, 0, -100, True))
    torch.library.opcheck(torch.ops.octo.token_grad.default, (logits, targets, scale, rows, 100, 0, -100, out))


def test_torch_compile():
    logits, targets = make("normal", 4, 1000, torch.float32)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x):
        result = token_log_probs(x, targets, return_entropy=True)
        return (result.log_probs + 0.1 * result.entropy).sum()

    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss(x).backward()
    result = token_log_probs(y, targets, return_entropy=True)
    (result.log_probs + 0.1 * result.entropy).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "expected_message"),
    [
        ({"logits_TV": torch.zeros(3)}, "give (tokens, vocabulary), floating point"),
        ({"logits_TV": torch.zeros(2, 5, dtype=torch.int32)}, "torch.int32"),
        ({"targets_T": torch.zeros(3, dtype=torch.int64)}, "give (2,) int64"),
        ({"targets_T": torch.zeros(2, dtype=torch.int32)}, "torch.int32"),
        ({"temperature": 0.0}, "temperature = 0.0: it must be above 0"),
        ({"temperature": torch.ones(3)}, "one for each of 2 tokens"),
    ],
)
def test_invalid_arguments_are_refused(arguments, expected_message):
    given = {"logits_TV": torch.zeros(2, 5), "targets_T": torch.zeros(2, dtype=torch.int64)} | arguments
    with pytest.raises(OperatorError) as error:
        token_log_probs(**given)
    assert expected_message in str(error.value)
