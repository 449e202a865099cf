"""Grading raises nothing and ends soon on any response; an answer equals itself."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.grading.boxes import extract_answer
from megatron_octo.grading.compare import MAX_CHARACTERS, decide_quickly, is_copied, same_text
from megatron_octo.grading.notation import normalized
from megatron_octo.grading.pool import Graders
from megatron_octo.grading.structure import read
from megatron_octo.grading.units import split_unit
from tests.grading.test_cases import CASES

_PIECES = [
    *"0123456789xyznNkRe()[]{}|<>=,.;:!?%'\"~^_+-*/&$@# \n\t\\é√π∞−½²（，）５°∪",
    "\\frac", "\\sqrt", "\\text{", "\\text{ cm}", "\\text{ or }", "\\boxed", "\\boxed{", "\\fbox{", "\\{", "\\}",
    "\\left(", "\\right]", "\\pm", "\\cup", "\\infty", "\\le", "\\ne", "\\in", "\\circ", "\\sin", "\\log_", "\\over",
    "\\sum_{k=1}^{9}", "\\int_0^1", "\\binom{5}{2}", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\,", "\\quad",
    "\\cdot", "\\overline{", "\\mathbb{R}", "\\setminus", "10^{9}", "99999999", " and ", " or ", "__import__('os')",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(_PIECES), max_size=60).map("".join) | st.text(max_size=120)
ANSWERS = st.sampled_from([case[1] for case in CASES if not case[1].startswith("R:")])
MUTATED = st.tuples(ANSWERS, ANSWERS, st.integers(0, 40), st.integers(0, 40)).map(lambda p: p[0][: p[2]] + p[1][p[3] :])
BOUNDED = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def graders():
    with Graders(processes=1, seconds=1.0) as pool:
        yield pool


@settings(BOUNDED, max_examples=1500)
@given(text=TEXT | MUTATED)
def test_reading_raises_nothing_and_is_quick(text):
    start = time.process_time()
    extract_answer(text)
    plain = normalized(text)
    split_unit(plain)
    read(plain)
    assert time.process_time() - start < 1.0


@settings(BOUNDED, max_examples=1500)
@given(text=TEXT | MUTATED, gold=ANSWERS)
def test_quick_decisions_raise_nothing(text, gold):
    decide_quickly(text, gold)
    is_copied(text, gold, f"Let ${text}$ be $$ {gold} $.")


@settings(BOUNDED, max_examples=300)
@given(text=TEXT | MUTATED, gold=ANSWERS)
def test_the_pool_answers_within_its_limit(graders, text, gold):
    start = time.monotonic()
    verdict = graders.grade(f"so \\boxed{{{text}}}", gold)
    assert time.monotonic() - start < 1.0 + 30.0  # a process that was ended is replaced
    assert not (verdict.is_right and verdict.timed_out)


@settings(BOUNDED, max_examples=1500)
@given(text=TEXT | MUTATED | ANSWERS)
def test_an_answer_is_equal_to_itself(text):
    if len(text) <= MAX_CHARACTERS and normalized(text):
        assert same_text(text, text)
