"""Preparation end to end, on real files, against what the files say."""

import gzip
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

from megatron_octo.data import pieces
from megatron_octo.data.corpora import expressions_in, make_corpus
from megatron_octo.data.heldout import practice_problems
from megatron_octo.data.manifest import read_manifest, verify_manifest
from megatron_octo.data.settings import current_manifest
from megatron_octo.errors import DataError
from megatron_octo.recipe import load_recipe
from megatron_octo.rl.prompts import trained_expressions
from tests.data.helpers import jsonl, left_behind, read_documents, read_texts, recipe_of, run_prepare, write_rows
from tests.data.test_tokenizer import bpe


def some_texts(count, seed=0):
    dice = random.Random(seed)
    words = ["sum", "größe", "∑", "seven", "12+7=19", "\n", "the", "proof", "🙂", "x_1"]
    return [f"{i}: " + " ".join(dice.choices(words, k=dice.randint(1, 40))) for i in range(count)]


@pytest.fixture(scope="module")
def texts():
    return some_texts(500)


def as_rows(texts):
    return [{"text": text, "id": i} for i, text in enumerate(texts)]


def test_text_goes_in_and_comes_out(texts, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", as_rows(texts))
    recipe = recipe_of({"a": jsonl(file, validation_documents=20, licence="CC0")})
    run, said = run_prepare(recipe, tmp_path / "run")
    folder = run.source("a")
    train, validation = read_texts(folder, "train"), read_texts(folder, "validation")
    assert len(validation) == 20
    assert set(train).isdisjoint(validation)
    assert train == [text for text in texts if text not in set(validation)]
    manifest = read_manifest(folder)
    assert (manifest.train.documents, manifest.validation.documents, manifest.rows_read) == (480, 20, 500)
    assert manifest.train.tokens == sum(len(text.encode()) + 1 for text in train)
    assert (manifest.licence, manifest.kind, manifest.inputs[0].bytes) == ("CC0", "jsonl", file.stat().st_size)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "train.bin", "train.idx", "validation.bin", "validation.idx"
    ]  # fmt: skip
    verify_manifest(folder, manifest)
    assert current_manifest(recipe, run, "a") == manifest
    assert manifest.prefixes(folder, "train") == [folder / "train"]
    assert "480" in said
    assert left_behind(run) == ["a"]


def test_tokens_are_those_of_the_tokenizer_alone_and_megatron_reads_them(texts, tmp_path):
    bpe(tmp_path / "tokenizer")
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    texts = [*texts, "this <eos> ends nothing and <bos> begins nothing"]
    file = write_rows(tmp_path / "a.jsonl", as_rows(texts))
    recipe = recipe_of(
        {"a": jsonl(file)}, model__tokenizer=str(tmp_path / "tokenizer"), model__end_of_document="<eos>",
        model__architecture__vocab_size=512,
    )  # fmt: skip
    run, _ = run_prepare(recipe, tmp_path / "run")
    alone.encode_special_tokens = True
    end = alone.token_to_id("<eos>")
    expected = [[*alone.encode(text, add_special_tokens=False).ids, end] for text in texts]
    (prefix,) = read_manifest(run.source("a")).prefixes(run.source("a"), "train")
    data = IndexedDataset(str(prefix))
    held = read_documents(run.source("a"), "validation")[0]
    assert [data[i].tolist() for i in range(len(data))] == [ids for ids in expected if ids != held]
    assert all(ids.count(end) == 1 and alone.token_to_id("<bos>") not in ids for ids in expected)


def compressed(path, kind, rows):
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    match kind:
        case "gz":
            path.write_bytes(gzip.compress(raw[:2000]) + gzip.compress(raw[2000:]))
        case "zst":  # two frames in one file, as tools that append write them
            pack = zstandard.ZstdCompressor().compress
            path.write_bytes(pack(raw[:2000]) + pack(raw[2000:]))
    return path


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "hub"])
def test_every_kind_of_input_gives_the_same_tokens(kind, texts, tmp_path):
    rows = as_rows(texts)
    plain = recipe_of({"a": jsonl(write_rows(tmp_path / "a.jsonl", rows))})
    source = {"validation_documents": 1}
    if kind in ("gz", "zst"):
        source |= jsonl(compressed(tmp_path / f"b.jsonl.{kind}", kind, rows))
    else:
        folder = tmp_path / "set"
        folder.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part.parquet", row_group_size=70)
        source |= (
            {"kind": "hub", "dataset": str(folder)} if kind == "hub"
            else {"kind": "parquet", "paths": [str(folder / "*.parquet")]}
        )  # fmt: skip
    run_a, _ = run_prepare(plain, tmp_path / "plain")
    run_b, _ = run_prepare(recipe_of({"a": source}), tmp_path / "other")
    a, b = (read_manifest(run.source("a")) for run in (run_a, run_b))
    assert [f.sha256 for f in a.train.files] == [f.sha256 for f in b.train.files]
    assert [f.sha256 for f in a.validation.files] == [f.sha256 for f in b.validation.files]
    assert b.kind == source["kind"]


def test_a_dotted_field_is_read_from_nested_parquet(tmp_path):
    """OpenR1-Math's form: the answer is in a list of messages."""
    rows = [
        {"problem": f"What is {i}+1?", "id": i, "messages": [{"content": "?"}, {"content": f"It is {i + 1}."}]}
        for i in range(40)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    form = {"kind": "long_cot", "question": "problem", "thought": None, "answer": "messages.1.content"}
    source = {"kind": "parquet", "paths": [str(tmp_path / "a.parquet")], "format": form, "validation_documents": 1}
    run, _ = run_prepare(recipe_of({"a": source}), tmp_path / "run")
    texts = read_texts(run.source("a"), "train") + read_texts(run.source("a"), "validation")
    assert sorted(texts) == sorted(f"What is {i}+1?\nIt is {i + 1}." for i in range(40))


def test_any_number_of_workers_gives_the_same_and_bad_lines_keep_their_numbers(tmp_path, monkeypatch):
    texts = some_texts(3000, seed=4)
    lines = [json.dumps({"text": text}) for text in texts]
    lines[7], lines[1234], lines[2999] = "{broken", '{"text": 3}', '{"other": 1}'
    lines.insert(100, "")
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))  # no line end at the end
    monkeypatch.setattr(pieces, "PIECE_BYTES", 20_000)
    recipe = recipe_of({"a": jsonl(file, max_bad_rows=0.01, validation_documents=30)})
    one, said = run_prepare(recipe, tmp_path / "one", workers=1)
    two, _ = run_prepare(recipe, tmp_path / "two", workers=2)
    assert len(pieces.pieces_of("a", recipe.data.sources["a"], [file], ["text"])) > 5
    assert read_manifest(one.source("a")) == read_manifest(two.source("a"))
    assert f"{file}:8\n" in said
    assert f"{file}:1236\n" in said
    assert f"{file}:3001\n" in said
    assert read_manifest(one.source("a")).rows_read == 3000
    kept = read_texts(one.source("a"), "train") + read_texts(one.source("a"), "validation")
    assert sorted(kept) == sorted(t for i, t in enumerate(texts) if i not in (7, 1234, 2999))


def test_a_duplicated_text_never_stands_in_both_splits(tmp_path):
    texts = some_texts(40, seed=9) * 5
    recipe = recipe_of({"a": jsonl(write_rows(tmp_path / "a.jsonl", as_rows(texts)), validation_documents=10)})
    run, _ = run_prepare(recipe, tmp_path / "run")
    train, validation = (read_texts(run.source("a"), split) for split in ("train", "validation"))
    assert len(set(validation)) == len(validation) == 10
    assert len(train) == 30 * 5
    assert set(train).isdisjoint(validation)
    assert read_manifest(run.source("a")).validation_duplicates == 40


@pytest.mark.parametrize("workers", [1, 2])
def test_limits(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 5_000)
    texts = some_texts(800, seed=2)
    file = write_rows(tmp_path / "a.jsonl", as_rows(texts))
    recipe = recipe_of({
        "d": jsonl(file, max_documents=100, validation_documents=7), "t": jsonl(file, max_tokens=5000),
    })  # fmt: skip
    run, _ = run_prepare(recipe, tmp_path / "run", workers=workers)
    train, validation = (read_texts(run.source("d"), split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts[:100])
    lengths = [len(text.encode()) + 1 for text in read_texts(run.source("t"), "train")]
    assert sum(lengths) >= 5000 > sum(lengths[:-1])
    kept, held = read_texts(run.source("t"), "train"), read_texts(run.source("t"), "validation")
    assert kept == [text for text in texts if text not in held][: len(kept)]


def test_again_it_skips_and_again_after_a_change(texts, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", as_rows(texts))
    recipe = recipe_of({"a": jsonl(file)})
    run, _ = run_prepare(recipe, tmp_path / "run")
    before = (run.source("a") / "train.bin").stat().st_mtime_ns
    _, said = run_prepare(recipe, run.root)
    assert "a: already prepared" in said
    assert (run.source("a") / "train.bin").stat().st_mtime_ns == before
    changed = recipe_of({"a": jsonl(file, validation_documents=9)})
    with pytest.raises(DataError, match="prepared with other settings than the recipe's current ones"):
        current_manifest(changed, run, "a")
    _, said = run_prepare(changed, run.root)
    assert "changed since it was prepared" in said
    assert read_manifest(run.source("a")).validation.documents == 9
    write_rows(file, as_rows(texts[:200]))
    run_prepare(changed, run.root)
    assert read_manifest(run.source("a")).rows_read == 200
    assert left_behind(run) == ["a"]


def test_only_sources_in_use_or_those_named(texts, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", as_rows(texts))
    stages = {"stable": {"parent": "base", "tokens": "1M", "mixture": {"used": 1.0}}}
    recipe = recipe_of({"used": jsonl(file), "unused": jsonl(file)}, stages=stages)
    run, _ = run_prepare(recipe, tmp_path / "run")
    assert left_behind(run) == ["used"]
    run_prepare(recipe, run.root, sources=["unused"])
    assert left_behind(run) == ["unused", "used"]
    with pytest.raises(DataError, match="'usde' is no source of recipe 'tiny'; did you mean 'used'"):
        run_prepare(recipe, run.root, sources=["usde"])


def test_builtin_sources_are_made_twice_the_same(tmp_path):
    sets = [f"data.sources.{name}.documents=400" for name in ("web", "code", "qa", "long_cot", "instruction")]
    recipe = load_recipe("tiny", sets)
    one, _ = run_prepare(recipe, tmp_path / "one")
    two, _ = run_prepare(recipe, tmp_path / "two")
    held = {json.loads(line)["question"] for line in one.heldout.read_text().splitlines()}
    assert len(held) == 256
    assert one.heldout.read_bytes() == two.heldout.read_bytes()
    for name in recipe.data.sources:
        assert read_manifest(one.source(name)) == read_manifest(two.source(name))
        assert read_manifest(one.source(name)).train.documents == 400 - 64
    assert all(f"Question:{q}\n" not in t for t in read_texts(one.source("qa"), "train") for q in held)
    # nor those that RL is to practise on, which the same text would hold if they were not kept out
    practice = {problem.question for problem in practice_problems(recipe)}
    assert len(practice) == 512 and practice.isdisjoint(trained_expressions(recipe, one))
    text = "\n".join(make_corpus("qa", 400, recipe.data.sources["qa"].seed, held))
    assert len(practice & set(expressions_in(text))) > 10


def test_a_vocabulary_beyond_16_bits(tmp_path, texts):
    vocabulary = {chr(0x4E00 + i) if i < 20000 else f"w{i}": i for i in range(70_000)}
    from tokenizers import AddedToken, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w69999"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    (tmp_path / "t").mkdir()
    tokenizer.save(str(tmp_path / "t" / "tokenizer.json"))
    file = write_rows(tmp_path / "a.jsonl", [{"text": f"w{69_000 + i} 一"} for i in range(50)])
    recipe = recipe_of(
        {"a": jsonl(file)}, model__tokenizer=str(tmp_path / "t"), model__end_of_document="<eos>",
        model__architecture__vocab_size=80_000,
    )  # fmt: skip
    run, _ = run_prepare(recipe, tmp_path / "run")
    documents = read_documents(run.source("a"), "train")
    assert read_manifest(run.source("a")).token_dtype == "int32"
    assert len(documents) == 49
    assert all(ids[0] >= 69_000 and ids[1:] == [0, 70_000] for ids in documents)
    assert np.fromfile(run.source("a") / "train.bin", np.int32).max() == 70_000
