"""A gold answer is refused where no answer in a box equals it: every right response would be wrong."""

import pytest

from megatron_octo.data.rows.row import BadRow
from megatron_octo.grading.decide import decide
from megatron_octo.rl.golds import check_gold


def graded(answer: str, gold: str) -> bool:
    return decide(answer, gold).is_right


@pytest.mark.parametrize(
    "gold", ["$$", "{", "}", "{}", "\\text{}", "\\text{ }", "\\left.", ";", ".", "=", "\\quad", "5{", "\\frac{\\}{p}"]
)
def test_what_no_box_can_hold_is_no_gold(gold):
    with pytest.raises(BadRow, match="field 'answer' cannot be an answer in a box"):
        check_gold(gold, "answer", graded)


@pytest.mark.parametrize("gold", ["\\boxed{}", "\\boxed{;}", "#### "])
def test_what_ends_with_nothing_is_no_gold(gold):
    with pytest.raises(BadRow, match="which does not equal its own answer"):
        check_gold(gold, "answer", graded)


@pytest.mark.parametrize(
    "gold", ["2", " 2 ", "$x$", "\\{1,2\\}", "\\emptyset", "\\text{no solution}", "-x", "<", "\\boxed{2}", "1,000"]
)
def test_what_is_equal_to_itself_is_a_gold(gold):
    check_gold(gold, "answer", graded)
