"""The cases of tests/ops/test_logits.py on a GPU."""

import pytest

from tests.ops.test_logits import (  # noqa: F401
    test_a_row_is_the_same_bits_in_any_batch,
    test_a_target_outside_the_vocabulary_is_minus_infinity,
    test_an_upstream_gradient_of_stride_0,
    test_compiled_operators_pass_opcheck,
    test_each_result_alone_and_together,
    test_forward_and_backward,
    test_ignored_tokens_give_zero_and_no_gradient,
    test_in_place_needs_rows_of_their_own,
    test_it_goes_through_torch_compile,
    test_nan_and_whole_rows_of_minus_infinity_are_not_hidden,
    test_nothing_is_changed_unless_asked,
    test_one_row_and_none,
    test_shards_joined_are_the_whole,
    test_strides,
    test_temperature,
    test_the_gradient_at_a_probability_near_1,
    test_what_still_needs_the_old_logits_is_refused_after_an_in_place_backward,
    test_without_gradients_nothing_is_kept,
)

pytestmark = pytest.mark.gpu
