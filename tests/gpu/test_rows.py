"""The cases of tests/ops/test_emulated.py, which is of rows that begin anywhere, on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from tests.ops.test_emulated import (  # noqa: F401
    test_rows_may_begin_anywhere,
    test_threads_in_another_order_and_in_place_give_the_same_bits,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def operators():
    """The operators themselves; the order of a GPU's threads is its own."""
    octo = torch.ops.octo
    return SimpleNamespace(token_stats=octo.token_stats, token_grad=octo.token_grad, backwards=lambda yes: None)
