"""The cases of tests/ops/test_linear.py on a GPU."""

import pytest

from tests.ops.test_linear import (  # noqa: F401
    test_a_tied_weight_gets_both_gradients,
    test_forward_and_backward,
    test_gradient_of_one_factor_alone,
    test_ignored_tokens_are_left_out_of_the_products,
    test_no_tokens,
    test_results_equal_token_log_probs_of_the_logits,
    test_strides,
    test_temperature_of_each_token_and_a_peaked_row,
    test_the_weights_gradient_is_summed_in_fp32_and_rounded_once,
    test_torch_compile,
)

pytestmark = pytest.mark.gpu
