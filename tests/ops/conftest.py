"""Fixtures that run the cases on each implementation of the row kernels."""

import pytest
import torch

from megatron_octo.ops import kernels
from tests.ops import emulated


@pytest.fixture(scope="session")
def emulated_operators(tmp_path_factory):
    """The CUDA kernels on an emulated GPU."""
    return emulated.load(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["compiled", "plain", "emulated CUDA"])
def implementation(request, monkeypatch):
    """Run the test on each implementation. The compiled library must be built."""
    assert kernels.has_library(), "csrc is not built: `python setup.py build_ext --inplace`"
    if request.param == "plain":
        monkeypatch.setattr(kernels, "is_compiled_for", lambda _: False)
    elif request.param == "emulated CUDA":
        monkeypatch.setattr(torch.ops, "octo", request.getfixturevalue("emulated_operators"))
    return request.param
