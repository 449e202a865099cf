r"""Cases by kind, both ways: answers that equal the gold in another notation, and answers that only look like it.

Columns of cases.tsv: kind, answer (in a box; `R:` begins a whole response), gold, whether it is right (strict form).
"""

from pathlib import Path

import pytest

from megatron_octo.grading.boxes import extract_answer
from megatron_octo.grading.compare import is_copied
from megatron_octo.grading.decide import decide

_LINES = (Path(__file__).parent / "cases.tsv").read_text(encoding="utf-8").splitlines()[1:]
CASES = [tuple(line.split("\t")) for line in _LINES]


def graded(answer: str, gold: str, form: str) -> bool:
    found = extract_answer(answer.removeprefix("R:") if answer.startswith("R:") else f"\\boxed{{{answer}}}")
    return found is not None and decide(found, gold).in_form(form).is_right


@pytest.mark.parametrize(("kind", "answer", "gold", "right"), CASES)
def test_case(kind, answer, gold, right):
    assert graded(answer, gold, "strict") == (right == "1"), kind


@pytest.mark.parametrize(("kind", "answer", "gold", "right"), [case for case in CASES if case[0] == "evaluated"])
def test_answers_that_are_right_strictly_are_right_leniently(kind, answer, gold, right):
    assert graded(answer, gold, "lenient") or right == "0"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("3+4-2", "5"),
        (r"\sum_{k=1}^{10} k", "55"),
        (r"\int_0^1 x\,dx", r"\frac{1}{2}"),
        (r"\gcd(12,18)", "6"),
        (r"\sqrt{16}", "4"),
        (r"\frac{12}{4}", "3"),
        ("3x+2x", "5x"),
        ("5!", "120"),
    ],
)
def test_unevaluated_is_right_and_marked_in_the_lenient_form(answer, gold):
    decision = decide(answer, gold)
    assert decision.marks == ("unevaluated",)
    assert decision.in_form("lenient").is_right and not decision.in_form("strict").is_right


@pytest.mark.parametrize("right", ["0", "1"])
def test_every_case_is_marked_one_way(right):
    assert sum(case[3] == right for case in CASES) > 200


@pytest.mark.parametrize(
    ("answer", "gold", "question", "copied"),
    [
        (r"\sqrt{180}", r"6\sqrt{5}", r"Simplify $\sqrt{180}$.", True),
        (r"\sqrt{ 180 }", r"6\sqrt{5}", r"Simplify \[\sqrt{180}.\]", True),
        ("(x+1)(x+2)", "x^2+3x+2", "Expand $(x+1)(x+2)$.", True),
        (r"\sin 30^\circ", r"\frac{1}{2}", r"Compute \(\sin 30^\circ\).", True),
        (r"\frac{36}{54}", r"\frac{2}{3}", r"Simplify $\frac{36}{54}$.", True),
        ("x+y=6", "6", "Let $x+y=6$. What is $x+y$?", True),
        ("2^{10}", "2^{10}", "Which is larger, $2^{10}$ or $10^3$?", False),
        ("0.5", r"\frac{1}{2}", "A coin falls with probability $0.5$.", False),
        (r"\frac{1}{2}", "0.5", r"A coin falls with probability $\frac{1}{2}$.", False),
        (r"10\text{ cm}", "10", r"A side is $10\text{ cm}$ long.", False),
        (r"6\sqrt{5}", r"\sqrt{180}", r"Simplify $\sqrt{180}$.", False),
    ],
)
def test_formulas_copied_from_the_question(answer, gold, question, copied):
    assert is_copied(answer, gold, question) is copied
