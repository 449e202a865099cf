import pytest

from megatron_octo.data.answers import last_boxed
from megatron_octo.eval.heldout import Answer


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


def test_a_megabyte_of_openings_takes_no_time():
    assert last_boxed(r"\boxed{" * 150_000) is None
    assert last_boxed(r"\boxed{" + "{" * 1_000_000) is None


def test_an_answer_is_right_by_its_box_alone():
    assert Answer("1+2", r"1+2=3. \boxed{3}", "3").is_right
    assert not Answer("1+2", "1+2=3.", "3").is_right
    assert not Answer("1+2", r"\boxed{13}", "3").is_right
