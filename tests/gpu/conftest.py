"""Fixtures that run this folder's tests on a CUDA device: their tensors are created there."""

import pytest
import torch

from megatron_octo.ops import kernels


@pytest.fixture(autouse=True)
def on_cuda():
    """Skip without a CUDA device; fail if the kernels are not built."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert kernels.has_cuda_kernels(), "csrc is not built with CUDA: `python setup.py build_ext --inplace`"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.fixture
def implementation():
    """Replaces the fixture of tests/ops."""
    return "CUDA"
