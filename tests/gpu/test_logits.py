"""The cases of tests/ops/test_logits.py on a GPU."""

import pytest

from tests.ops.test_logits import (  # noqa: F401
    test_a_row_is_bit_identical_in_any_batch,
    test_a_target_outside_the_vocabulary_gives_minus_infinity,
    test_an_upstream_gradient_of_stride_0,
    test_compiled_operators_pass_opcheck,
    test_each_result_alone_and_together,
    test_forward_and_backward,
    test_ignored_tokens_give_zero_and_no_gradient,
    test_in_place_needs_contiguous_separate_rows,
    test_logits_are_overwritten_only_on_request,
    test_merged_shards_give_the_statistics_of_the_whole,
    test_nan_and_rows_of_minus_infinity_give_nan,
    test_nothing_is_saved_without_gradients,
    test_one_row_and_none,
    test_overwritten_logits_are_not_used_after_an_in_place_backward,
    test_strides,
    test_temperature,
    test_the_gradient_at_a_probability_near_1,
    test_torch_compile,
)

pytestmark = pytest.mark.gpu
