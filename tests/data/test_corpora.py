"""Built-in corpora: right, short, the same every time, and apart from the held-out problems by text."""

import contextlib
import io
import re
import subprocess
import sys

import pytest

from megatron_octo.data.corpora import CORPORA, expressions_in, make_corpus
from megatron_octo.data.heldout import (
    heldout_problems,
    heldout_settings,
    practice_problems,
    read_heldout,
    write_heldout,
)
from megatron_octo.recipe import load_recipe

EQUATION = re.compile(r"(?<![\d*+\-/=.])(\d+(?:[+\-*]\d+)+)=(\d+)(?![\d/])")


@pytest.mark.parametrize("corpus", sorted(CORPORA))
def test_every_plain_equation_is_right(corpus):
    checked = 0
    for text in make_corpus(corpus, 2000, 3):
        for left, right in EQUATION.findall(text):
            assert eval(left) == int(right), text
            checked += 1
    assert checked > 1000


def test_code_runs_and_prints_what_its_comments_say():
    ran = 0
    for text in make_corpus("code", 600, 5):
        if text.startswith(">>>"):
            for expression, value in re.findall(r">>> (.+)\n(.+)", text):
                assert str(eval(expression)) == value
        else:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(text, {})
            last = text.splitlines()[-1]
            assert re.search(r"(\d+|True)$", last).group() == out.getvalue().split()[-1], text
        ran += 1
    assert ran == 600


@pytest.mark.parametrize("corpus", ["qa", "long_cot", "instruction"])
def test_the_boxed_answer_is_the_sum(corpus):
    for text in make_corpus(corpus, 1500, 4):
        asked = expressions_in(text.split("Answer:")[0].split("<think>")[0].split("Assistant:")[0])
        if len(asked) == 1 and "Solve" not in text and "=" not in text.partition("\n")[0].rstrip("=?"):
            assert text.endswith(f"\\boxed{{{eval(asked[0])}}}"), text


def test_roles_have_their_shapes():
    assert all(re.fullmatch(r"Question:.+\nAnswer:.+\\boxed\{[^}]+\}", t, re.S) for t in make_corpus("qa", 300, 0))
    assert all(re.fullmatch(r".+\n<think>.+</think>\\boxed\{[^}]+\}", t, re.S) for t in make_corpus("long_cot", 300, 0))
    assert all(re.fullmatch(r"User:.+\nAssistant:.+\}", t, re.S) for t in make_corpus("instruction", 300, 0))


@pytest.mark.parametrize("corpus", sorted(CORPORA))
def test_documents_differ_and_are_short(corpus):
    texts = list(make_corpus(corpus, 3000, 0))
    assert len(set(texts)) == 3000
    assert sum(len(text.encode()) > 127 for text in texts) / 3000 < 0.05


def test_the_same_arguments_give_the_same_text_in_another_process():
    code = (
        "import hashlib; from megatron_octo.data.corpora import make_corpus;"
        "print(hashlib.sha256('|'.join(make_corpus('web', 500, 1)).encode()).hexdigest())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                       env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1
    assert list(make_corpus("web", 50, 1)) != list(make_corpus("web", 50, 2))


def _heldout(**overrides):
    sets = [f"data.{key}={value}" for key, value in overrides.items()]
    return heldout_problems(load_recipe("tiny", sets))


@pytest.mark.parametrize("heldout_seed", [0, 1, 1_000_003])
def test_no_corpus_holds_a_heldout_expression_whatever_the_seeds(heldout_seed):
    held = {p.question for p in _heldout(heldout_problems=256, heldout_seed=heldout_seed)}
    spaced = re.compile(r"(\d+)\s*([+-])\s*(\d+)\s*([+-])\s*(\d+)")
    for corpus in CORPORA:
        for seed in (0, heldout_seed):
            for text in make_corpus(corpus, 1500, seed, held):
                # an independent search: every run of three terms that is not part of a longer one
                for match in spaced.finditer(text):
                    before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
                    if not before.endswith(("+", "-")) and not re.match(r"[+-]\s*\d", after):
                        assert "".join(match.groups()) not in held, text


def test_without_the_exclusion_the_corpora_would_hold_them():
    held = {p.question for p in _heldout(heldout_problems=256)}
    texts = list(make_corpus("qa", 20_000, 0))
    assert sum(not held.isdisjoint(expressions_in(text)) for text in texts) > 50


def test_heldout_problems_are_different_sums_of_three_terms(tmp_path):
    problems = _heldout(heldout_problems=1000)
    assert len({p.question for p in problems}) == 1000
    assert all(re.fullmatch(r"\d+[+-]\d+[+-]\d+", p.question) for p in problems)
    assert all(str(eval(p.question)) == p.answer
               for p in problems)  # fmt: skip
    assert sum(len(p.question) == 5 for p in problems) <= 256
    path = tmp_path / "heldout" / "problems.jsonl"
    write_heldout(problems, path)
    rows = read_heldout(path)
    assert rows[0]["prompt"] == f"Question:{rows[0]['question']}\nAnswer:"
    assert [row["answer"] for row in rows] == [p.answer for p in problems]


def test_practice_problems_are_short_and_apart_from_the_heldout_ones():
    recipe = load_recipe("tiny", ["data.practice_problems=800", "data.heldout_problems=1000"])
    practice = {p.question for p in practice_problems(recipe)}
    assert len(practice) == 800 and all(re.fullmatch(r"\d[+-]\d[+-]\d", question) for question in practice)
    assert practice.isdisjoint(p.question for p in heldout_problems(recipe))
    assert practice_problems(load_recipe("tiny", ["data.practice_problems=0"])) == []


def test_recipes_without_practice_problems_keep_their_settings_digest():
    """Data that was prepared before the key existed stays valid."""
    settings = heldout_settings(load_recipe("tiny", ["data.practice_problems=0"]))
    assert settings == {"problems": 256, "seed": 1_000_003, "version": 1}
    assert heldout_settings(load_recipe("tiny"))["practice"] == 512


def test_expressions_are_found_whole_and_however_spaced():
    assert expressions_in("12 + 7-5=14, and 3 \u2212 1.") == ["12+7-5", "3-1"]
    assert expressions_in("12+7-5+3") == ["12+7-5+3"]
