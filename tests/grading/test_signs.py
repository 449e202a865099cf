"""Signs always count: an answer with another sign is wrong, in values, terms, tuples and lists."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_octo.grading import algebra
from megatron_octo.grading.decide import decide
from megatron_octo.grading.notation import normalized
from megatron_octo.grading.structure import read
from tests.grading.test_cases import CASES
from tests.grading.test_fuzz import BOUNDED

_TERM_SIGN = re.compile(r"(?<=[\w)}])[+-](?=[\w(\\])")
_FLIPPED = {"+": "-", "-": "+"}


def is_signed(gold: str) -> bool:
    """Whether a gold has one value, which is not zero, nor has both signs."""
    text = normalized(gold)
    value = algebra.parsed(text)
    return read(text).kind == "value" and "\\pm" not in text and value is not None and value.doit() != 0


GOLDS = sorted({case[2] for case in CASES if is_signed(case[2])})
MONOMIALS = st.tuples(
    st.integers(1, 12), st.lists(st.sampled_from(["x", "y", "ab", "n^2", "m", "\\pi", "i", "R"]), max_size=3)
).map(lambda term: ("" if term[0] == 1 and term[1] else str(term[0])) + " ".join(term[1]))
SIGNED = st.lists(st.tuples(st.sampled_from("+-"), MONOMIALS), min_size=1, max_size=4)


def written(terms: list[tuple[str, str]]) -> str:
    return "".join(sign + term for sign, term in terms).removeprefix("+")


def with_one_flipped(terms: list[tuple[str, str]], at: int) -> list[tuple[str, str]]:
    at %= len(terms)
    return [*terms[:at], (_FLIPPED[terms[at][0]], terms[at][1]), *terms[at + 1 :]]


def are_other(answer: str, gold: str) -> bool:
    return not decide(answer, gold).is_right and not decide(gold, answer).is_right


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_of_the_other_sign_is_wrong(gold):
    assert are_other(f"-({gold})", gold)
    name, equals, value = gold.partition("=")
    flipped = f"{name}=-({value})" if equals else f"-{gold}"
    if not re.search(r"(?<=.)[+-]", normalized(gold)) and not normalized(gold).startswith("-"):
        assert are_other(flipped, gold)


@pytest.mark.parametrize("gold", [gold for gold in GOLDS if _TERM_SIGN.search(normalized(gold))])
def test_a_term_of_the_other_sign_is_wrong(gold):
    text = normalized(gold)
    for sign in _TERM_SIGN.finditer(text):
        assert are_other(text[: sign.start()] + _FLIPPED[sign.group()] + text[sign.end() :], gold)


@BOUNDED
@given(SIGNED, st.integers(0, 3))
def test_a_polynomial_with_another_sign_is_wrong(terms, at):
    gold = written(terms)
    assert decide(gold, gold).is_right
    assert are_other(written(with_one_flipped(terms, at)), gold)
    assert are_other(f"z={written(with_one_flipped(terms, at))}", f"z={gold}")


@BOUNDED
@given(SIGNED, st.integers(0, 3), st.sampled_from(["({})", "{}", "\\{{{}\\}}", "[{})"]))
def test_an_entry_of_another_sign_is_wrong(terms, at, brackets):
    if brackets == "[{})" and len(terms) != 2:
        return
    gold, answer = (
        brackets.format(",".join(written([term]) for term in entries))
        for entries in (terms, with_one_flipped(terms, at))
    )
    assert are_other(answer, gold)


@BOUNDED
@given(st.lists(st.sampled_from(["x", "y", "ab", "pqr", "AB", "n", "i"]), min_size=2, max_size=4), st.integers(0, 2))
def test_letters_are_taken_from_each_other(words, at):
    at %= len(words) - 1
    joined, signed = "".join(words), "".join(words[: at + 1]) + "-" + "".join(words[at + 1 :])
    assert are_other(signed, joined) and are_other(f"-{joined}", joined)
    assert are_other(f"\\text{{-{words[0]}}}", words[0])
