"""The cases of tests/ops/test_emulated.py, rows at any alignment, on a GPU."""

from types import SimpleNamespace

import pytest
import torch

from tests.ops.test_emulated import (  # noqa: F401
    test_rows_at_any_alignment,
    test_threads_in_another_order_and_in_place_give_the_same_bits,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def operators():
    """The real operators. The order of threads cannot be chosen on a GPU."""
    octo = torch.ops.octo
    return SimpleNamespace(token_stats=octo.token_stats, token_grad=octo.token_grad, backwards=lambda yes: None)
