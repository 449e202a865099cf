"""Peak memory of the linear form on CUDA, counted on fake tensors, without a GPU."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_octo.ops import kernels, linear_token_log_probs


class Peak(TorchDispatchMode):
    """Peak bytes of all live storages, beyond those of the inputs."""

    def __init__(self, *inputs):
        super().__init__()
        self.live = {x.untyped_storage()._cdata for x in inputs}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for x in tree_leaves(results):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.live:
                self._add(x.untyped_storage())
        return results

    def _add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.live.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key, size):
        self.live.discard(key)
        self.now -= size


def addmm_in_place(total, a, b, *, out_dtype, out):
    """CUDA's addmm with `out`, for which fake tensors have no rule: it sums in place."""
    assert out is total and total.dtype == out_dtype == torch.float32 and a.dtype == b.dtype == torch.bfloat16
    assert total.shape == (a.size(0), b.size(1)) and a.size(1) == b.size(0)
    return out


@pytest.fixture
def as_on_cuda(monkeypatch):
    assert kernels.has_library()
    monkeypatch.setattr(FakeTensor, "is_cuda", True, raising=False)  # CPU tensors, since torch may have no CUDA
    monkeypatch.setattr(kernels, "has_bf16_product", lambda: False)
    monkeypatch.setattr(torch, "addmm", addmm_in_place)


@pytest.mark.parametrize(("with_gradients", "limit"), [(False, 0.065e9), (True, 1.3e9)])
def test_peak_memory_meets_the_goal(with_gradients, limit, as_on_cuda):
    """8,192 tokens, hidden 4,096, vocabulary 131,072, bf16, entropy: 1.3 GB, of which the weight's gradient is 1.07."""
    with FakeTensorMode():
        h = torch.empty(8192, 4096, dtype=torch.bfloat16, requires_grad=True)
        w = torch.empty(131_072, 4096, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.empty(8192, dtype=torch.int64)
        with Peak(h, w, targets) as memory, torch.set_grad_enabled(with_gradients):
            result = linear_token_log_probs(h, w, targets, return_entropy=True, skip_ignored=False)
            if with_gradients:
                torch.autograd.grad(result.log_probs.sum() + result.entropy.sum(), (h, w))
    weight_gradient = 131_072 * 4096 * 2
    assert (weight_gradient if with_gradients else 0) < memory.peak <= limit
