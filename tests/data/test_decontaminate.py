"""Decontamination: planted overlaps are counted by set, near misses stay, and a slow search agrees."""

import random
import re
import unicodedata
from pathlib import Path

import pytest

from megatron_octo.data.manifest import read_manifest
from megatron_octo.data.ngrams import NGramIndex, NGramSearch, words_of
from tests.data.helpers import jsonl, read_texts, recipe_of, run_prepare, write_rows

SHARED = Path("../shared/data")
WORDS = [f"w{i}" for i in range(60)]


def sentence(dice, count):
    return " ".join(dice.choices(WORDS, k=count))


def slow_match(text, protected, n):
    """The first set that shares a run of words, by comparing every run with every run."""

    def words(value):
        return re.findall(r"\w+", unicodedata.normalize("NFKC", value).lower())

    def runs(value, length):
        return {tuple(value[i : i + length]) for i in range(len(value) - length + 1)}

    mine = words(text)
    for which, texts in enumerate(protected.values()):
        for item in map(words, texts):
            if len(item) >= min(5, n) and runs(mine, min(n, len(item))) & runs(item, min(n, len(item))):
                return which
    return None


@pytest.mark.parametrize("n", [3, 6, 13])
def test_it_agrees_with_comparing_every_run(n):
    dice = random.Random(n)
    protected = {"a": [sentence(dice, dice.randint(1, 25)) for _ in range(60)],
                 "b": [sentence(dice, dice.randint(1, 25)) for _ in range(60)]}  # fmt: skip
    texts = []
    for _ in range(400):
        planted = dice.choice(protected[dice.choice("ab")]).split()
        start = dice.randrange(len(planted))
        middle = ", ".join(planted[start : start + dice.randint(1, 20)]).upper()
        texts.append(f"{sentence(dice, dice.randint(0, 9))} ({middle})! {sentence(dice, dice.randint(0, 9))}")
    found = NGramSearch(NGramIndex.build(protected, n)).first_match(texts)
    assert found == [slow_match(text, protected, n) for text in texts]
    assert {0, 1, None} == set(found)


def test_words_are_normalised_as_documented():
    assert words_of("Janet\u2019s $18.50, x+y, ＡＢＣ!\n\tﬁn") == ["janet", "s", "18", "50", "x", "y", "abc", "fin"]


def test_runs_never_cross_from_one_document_to_the_next():
    search = NGramSearch(NGramIndex.build({"a": ["one two three four five six"]}, 6))
    assert search.first_match(["one two three", "four five six", "", "one two three four five six"]) == [
        None, None, None, 0
    ]  # fmt: skip


def test_planted_overlaps_are_dropped_and_counted_by_set(tmp_path):
    dice = random.Random(1)
    long, short, tiny = sentence(dice, 20), sentence(dice, 7), "too short"
    clean = [f"{i} {sentence(dice, 30)}" for i in range(200)]
    words = long.split()
    rows = [
        *clean, f"before {long} after", f"cut {' '.join(words[4:17])} here", f"x. {short.upper()}! y",
        # near misses: 12 words in a row; the short one with a word between; the one too short to search for
        f"near {' '.join(words[:12])} miss", short.replace(" ", " x ", 1), f"{tiny} {tiny}",
    ]  # fmt: skip
    write_rows(tmp_path / "first.jsonl", [{"question": long, "n": 1}])
    (tmp_path / "second.json").write_text(f'{{"1": {{"q": ["{short}", "{tiny}"]}}, "2": {{"q": "{long} more"}}}}')
    against = {
        "first": {"paths": [str(tmp_path / "first.jsonl")], "fields": ["question"]},
        "second": {"paths": [str(tmp_path / "second.json")], "fields": ["q"]},
    }
    file = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in rows])
    sources = {"clean": jsonl(file), "as_it_is": jsonl(file, decontaminate=False)}
    recipe = recipe_of(sources, data__decontamination__against=against)
    run, said = run_prepare(recipe, tmp_path / "run")
    assert read_manifest(run.source("clean")).contaminated == {"first": 2, "second": 1}
    assert read_manifest(run.source("as_it_is")).contaminated == {}
    kept = read_texts(run.source("clean"), "train") + read_texts(run.source("clean"), "validation")
    assert sorted(kept) == sorted(rows[:200] + rows[203:])
    assert "1 texts of second are too short to search for" in said
    assert "first 2, second 1" in said


def test_heldout_problems_are_dropped_from_other_sources_too(tmp_path):
    plain = {"a": jsonl(write_rows(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(20)]))}
    run, _ = run_prepare(recipe_of(plain, data__heldout_problems=5), tmp_path / "first")
    import json

    question = json.loads(run.heldout.read_text().splitlines()[0])["question"]
    spaced = re.sub(r"([+-])", r" \1 ", question)
    rows = [{"text": f"row {i}"} for i in range(20)]
    rows += [{"text": f"We find {spaced} = ?"}, {"text": f"Not {question}+1 though"}]
    recipe = recipe_of({"a": jsonl(write_rows(tmp_path / "b.jsonl", rows))}, data__heldout_problems=5)
    run, _ = run_prepare(recipe, tmp_path / "second")
    assert read_manifest(run.source("a")).contaminated == {"heldout": 1}
    assert read_manifest(run.source("a")).train.documents == 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmark files in ../shared/data, which are not here")
def test_real_benchmarks_in_training_text_are_found(tmp_path):
    test = SHARED / "eval" / "gsm8k" / "test.jsonl"
    import json

    questions = [json.loads(line)["question"] for line in test.read_text().splitlines()]
    train = [json.loads(line) for line in (SHARED / "train" / "gsm8k_train.jsonl").read_text().splitlines()]
    rows = [{"text": row["question"]} for row in train[:1000]] + [{"text": f"Q: {q}"} for q in questions]
    against = {"gsm8k": {"paths": [str(test)], "fields": ["question"]}}
    source = jsonl(write_rows(tmp_path / "a.jsonl", rows))
    run, _ = run_prepare(recipe_of({"a": source}, data__decontamination__against=against), tmp_path / "run")
    dropped = read_manifest(run.source("a")).contaminated["gsm8k"]
    assert len(questions) <= dropped < len(questions) + 100
