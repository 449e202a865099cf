import time

import pytest

from megatron_octo.eval.heldout import Answer
from megatron_octo.grading.boxes import extract_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"1+2=3. \boxed{3}", "3"),
        (r"\boxed{1} and then \boxed{ 2 }", " 2 "),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1", None),
        ("no box", None),
        ("", None),
    ],
)
def test_the_last_box_that_closes(text, expected):
    assert last_boxed(text) == expected
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed {3}", "3"),
        ("\\boxed\n{3}", "3"),
        (r"\fbox{3}", "3"),
        (r"\framebox{3}", "3"),
        (r"\boxed 3", "3"),
        (r"$\boxed 3$ is it", "3"),
        (r"\boxed 3 is it", "3"),
        (r"\boxed 3.5.", "3.5"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\[\boxed x+1\]", "x+1"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\boxed{\left\{1,2\right.}", r"\left\{1,2\right."),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\fbox{1} \boxed{2}", "2"),
        (r"\boxed{1 \\ 2}", r"1 \\ 2"),
        (r"\boxedtext{3}", None),
        (r"\boxed", None),
        (r"\boxed $", None),
        (r"a {\boxed} 3", None),
    ],
)
def test_forms_of_the_box(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    "text", [r"\boxed{" * 300_000, r"\boxed{" + "{" * 1_000_000, r"\fbox " * 300_000, "\\{" * 10**6]
)
def test_megabytes_of_openings_take_no_time(text):
    start = time.process_time()
    assert not extract_answer(text) and not last_boxed(text)
    assert time.process_time() - start < 5


def test_an_answer_to_a_held_out_problem_is_right_by_its_plain_box_alone():
    assert Answer("1+2", r"1+2=3. \boxed{3}", "3").is_right
    assert not Answer("1+2", "1+2=3.", "3").is_right
    assert not Answer("1+2", r"\boxed{13}", "3").is_right
    assert not Answer("1+2", r"\boxed {3}", "3").is_right
