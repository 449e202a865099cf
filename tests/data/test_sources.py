"""Whole preparations from input that was once read wrong without a word."""

import gzip
import hashlib
import json
import lzma
import os
import stat
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_octo import recipe as recipe_module
from megatron_octo.data.decontaminate import protected_digest, read_protected
from megatron_octo.data.hub import open_hub
from megatron_octo.data.manifest import read_manifest
from megatron_octo.data.rows import lines
from megatron_octo.data.settings import settings_digest
from megatron_octo.data.tokenizer import load_tokenizer
from megatron_octo.errors import DataError
from megatron_octo.recipe.data import Decontamination, HubSource
from megatron_octo.runtime.files import sha256_of_json
from megatron_octo.runtime.run_folder import RunFolder
from tests.data.helpers import jsonl, left_behind, read_texts, recipe_of, run_prepare, write_rows
from tests.data.test_tokenizer import with_limits

ROWS = [{"text": f"number {i}: " + "some words " * 5} for i in range(200)]
TEXTS = sorted(row["text"] for row in ROWS)
RAW = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def prepared(source, root, **overrides):
    """Texts of both splits, sorted, and the manifest."""
    run, _ = run_prepare(recipe_of({"a": source}, **overrides), root)
    folder = run.source("a")
    return sorted(read_texts(folder, "train") + read_texts(folder, "validation")), read_manifest(folder)


def refused(source, root, match, **overrides):
    with pytest.raises(DataError, match=match) as caught:
        run_prepare(recipe_of({"a": source}, **overrides), root)
    assert left_behind(RunFolder(root)) == []
    assert len(str(caught.value)) < 3000


def test_zstandard_cut_in_the_middle(tmp_path):
    rows = [{"text": os.urandom(40).hex()} for _ in range(20_000)]
    data = zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(data[: len(data) // 2])
    refused(jsonl(file), tmp_path / "run", "damaged or cut short .*; download the file again")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.xz", lzma.compress(RAW)),
        ("a.jsonl.zstd", zstandard.compress(RAW)),
        ("misnamed.jsonl", gzip.compress(RAW, mtime=0)),
        ("misnamed.gz", RAW),
        ("array.json", json.dumps(ROWS, indent=1).encode()),
        ("bom.jsonl", b"\xef\xbb\xbf" + RAW),
    ],
)
def test_every_form_gives_every_row(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    texts, manifest = prepared(jsonl(tmp_path / name), tmp_path / "run")
    assert texts == TEXTS
    assert (manifest.rows_read, manifest.bad_rows) == (200, {})


def test_parquet_named_jsonl_is_read_and_the_other_way_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=30)
    assert prepared(jsonl(file), tmp_path / "run")[0] == TEXTS
    file.write_bytes(RAW)
    source = {"kind": "parquet", "paths": [str(file)]}
    refused(source, tmp_path / "other", r"is not a Parquet file .*lines of text\); set the source's kind to jsonl")


def test_a_file_of_exactly_that_name_wins_over_the_glob(tmp_path):
    (tmp_path / "in[1]").mkdir()
    for name in ("part[1].jsonl", "part1.jsonl", "in[1]/a*.jsonl", "in[1]/ab.jsonl"):
        write_rows(tmp_path / name, [{"text": f"{name}, {i}"} for i in range(10)])
    for pattern, names in {
        "part[1].jsonl": {"part[1].jsonl"},
        "part[12].jsonl": {"part1.jsonl"},
        "in[1]/a*.jsonl": {"in[1]/a*.jsonl"},
        "in[1]/a?.jsonl": {"in[1]/ab.jsonl"},
        "in[1]/*.jsonl": {"in[1]/a*.jsonl", "in[1]/ab.jsonl"},
    }.items():
        if pattern == "in[1]/a?.jsonl":
            (tmp_path / "in[1]/a*.jsonl").rename(tmp_path / "in[1]/other")
        if pattern == "in[1]/*.jsonl":
            (tmp_path / "in[1]/other").rename(tmp_path / "in[1]/a*.jsonl")
        texts, _ = prepared(jsonl(tmp_path / pattern), tmp_path / "run")
        assert {text.partition(", ")[0] for text in texts} == names, pattern


def test_a_column_that_nobody_asked_for_spoils_no_row(tmp_path):
    lines = [json.dumps(row)[:-1] + ', "score": NaN, "note": "\\ud83d"}' for row in ROWS]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert prepared(jsonl(tmp_path / "a.jsonl"), tmp_path / "run")[0] == TEXTS
    (tmp_path / "a.jsonl").write_text("\n".join(['{"text": "half \\ud800"}', '{"text": NaN}', *lines]))
    refused(
        jsonl(tmp_path / "a.jsonl"), tmp_path / "other", "1 x field 'text' holds half of a surrogate pair.*\n.*a number"
    )


def test_dotted_messages(tmp_path):
    rows = [{"meta": {"messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": f"A{i}"}]}}
            for i in range(30)]  # fmt: skip
    form = {"kind": "instruction", "messages": "meta.messages"}
    file = write_rows(tmp_path / "a.jsonl", rows)
    expected = sorted(f"User:Q{i}\nAssistant:A{i}" for i in range(30))
    assert prepared(jsonl(file, format=form), tmp_path / "run")[0] == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = {"kind": "parquet", "paths": [str(tmp_path / "a.parquet")], "format": form, "validation_documents": 1}
    assert prepared(source, tmp_path / "other")[0] == expected


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": ["user"], "content": "x"}], [{"role": {"a": 1}, "content": "x"}], [{"role": 7, "content": "x"}],
        [{"role": "user", "content": ["x"]}], [{"role": "user"}], [["user", "x"]], {"role": "user"}, 5, None, [None],
    ],
)  # fmt: skip
def test_messages_of_any_kind_are_bad_rows(messages, tmp_path):
    good = {"m": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    file = write_rows(tmp_path / "a.jsonl", [*[good] * 5, {"m": messages}])
    form = {"kind": "instruction", "messages": "m"}
    refused(jsonl(file, format=form), tmp_path / "run", r"1 of 6 rows .*\n  1 x .*a.jsonl:6\n")


def test_one_bad_row_of_parquet(tmp_path):
    values = [text.encode() for text in TEXTS]
    values[50] = b"\xff"
    table = pyarrow.table({"text": pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = {"kind": "parquet", "paths": [str(tmp_path / "a.parquet")], "validation_documents": 1}
    texts, manifest = prepared(source | {"max_bad_rows": 0.01}, tmp_path / "run")
    assert texts == TEXTS[:50] + TEXTS[51:] and manifest.bad_rows == {"not UTF-8": 1}
    refused(source, tmp_path / "other", r"1 x not UTF-8: .*a.parquet:51")


@pytest.mark.parametrize("limit", ["truncation", "padding"])
def test_a_tokenizers_own_limits_are_switched_off(limit, tmp_path):
    with_limits(tmp_path / "mine", limit)
    file = tmp_path / "a.jsonl"
    file.write_bytes(RAW)
    texts, _ = prepared(jsonl(file), tmp_path / "run", model__tokenizer=str(tmp_path / "mine"))
    assert texts == TEXTS


def test_what_was_prepared_with_truncation_on_is_made_again_and_nothing_else(tmp_path):
    """A digest of settings as at e9c0304: with other tokenizers it is the same, so old run folders go on."""
    for limit in (None, "truncation"):
        folder = tmp_path / str(limit) / "data" / "tokenizer"
        with_limits(folder, limit or "padding")
        recipe = recipe_of({"a": jsonl(tmp_path / "a.jsonl")}, data__heldout_problems=3)
        values = {
            "version": 1,
            "source": recipe.data.sources["a"].model_dump(mode="json", exclude={"description"}),
            "tokenizer": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
            "end_of_document": "<|endoftext|>",
            "heldout": {"problems": 3, "seed": 1000003, "version": 1, "practice": 512},
            "decontamination": {"ngram": 13, "against": {}},
            "evaluation_files": {},
        }
        is_old = settings_digest(recipe, "a", folder) == sha256_of_json(values)
        assert is_old == (limit is None)


def test_decontamination_files_of_every_form(tmp_path):
    question = "Natalia went to the market and bought twelve red apples and seven green pears for her aunt"
    raw = (json.dumps({"q": question}) + "\n").encode()
    files = {
        "e.jsonl.gz": gzip.compress(raw), "bom.jsonl": b"\xef\xbb\xbf" + raw,
        "u2028.jsonl": raw.replace(b"aunt", b"aunt\xe2\x80\xa8and more") + b'{"q": "another one"}\n',
        "nested.json": json.dumps([{"a": {"q": question}}]).encode(),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"q": question}]), tmp_path / "e.parquet")
    source = jsonl(write_rows(tmp_path / "a.jsonl", [*ROWS, {"text": f"Know this: {question}!"}]))
    for name in (*files, "e.parquet"):
        field = "a.q" if name == "nested.json" else "q"
        against = {"e": {"paths": [str(tmp_path / name)], "fields": [field]}}
        texts, manifest = prepared(source, tmp_path / f"run-{name}",
                                   data__decontamination__against=against)  # fmt: skip
        assert manifest.contaminated == {"e": 1} and texts == TEXTS, name


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ('{"q": "café"}'.encode("latin-1"), "item 1 of .*: not UTF-8; correct the file"),
        (b'{"q": "x"}\n{"q": ', "item 2 of .*: not JSON; correct the file"),
        (b'{"q": null}', r"has no text in field 'q'; correct `fields` \(it has q\): it is null"),
        (b'{"q": ["a", 5]}', "it is a number"),
        (b'{"q": "\\ud800"}', "half of a surrogate pair"),
        (b"\n\n", "holds no rows"),
        (gzip.compress(b'{"q": "x"}' * 100, mtime=0)[:-20], "damaged or cut short"),
        ('{"q": "x"}'.encode("utf-16"), "UTF-16 text, by its first bytes"),
    ],
)
def test_decontamination_files_that_cannot_be_read(data, match, tmp_path):
    (tmp_path / "e.jsonl").write_bytes(data)
    against = {"e": {"paths": [str(tmp_path / "e.jsonl")], "fields": ["q"]}}
    source = jsonl(write_rows(tmp_path / "a.jsonl", ROWS))
    refused(source, tmp_path / "run", match, data__decontamination__against=against)


def test_home_folders_of_nobody(tmp_path):
    against = Decontamination(against={"e": {"paths": ["~no-such-user/e.jsonl"], "fields": ["q"]}})
    for read in (read_protected, protected_digest):
        with pytest.raises(DataError, match=r"against\.e\.paths: ~no-such-user/e\.jsonl: .* write the whole path"):
            read(against)
    model = recipe_of({"a": jsonl("a.jsonl")}, model__tokenizer="~no-such-user/t").model
    with pytest.raises(DataError, match=r"model\.tokenizer: ~no-such-user/t: .* write the whole path"):
        load_tokenizer(model, tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"data\.sources\.a\.dataset: ~no-such-user/d: .* write the whole path"):
        open_hub("a", HubSource(kind="hub", dataset="~no-such-user/d"))


def test_an_evaluation_file_of_enormous_size(tmp_path):
    with open(tmp_path / "e.jsonl", "wb") as file:
        file.truncate(1 << 42)  # sparse
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(bytes(2 << 30)))
    source = jsonl(write_rows(tmp_path / "a.jsonl", ROWS))
    for name, match in (("e.jsonl", "4,398,046,511,104 bytes, and at most"), ("b.jsonl.zst", "once decompressed")):
        against = {"e": {"paths": [str(tmp_path / name)], "fields": ["q"]}}
        refused(source, tmp_path / "run", match, data__decontamination__against=against)


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, match in {
        "folder": "is a folder; name the files in it", "pipe": "matches no file", "x" * 300: "matches no file|too long",
        "/".join(["y" * 200] * 30): "matches no file|too long",
    }.items():  # fmt: skip
        refused(jsonl(tmp_path / path), tmp_path / "run", match)
    refused(jsonl("~nobody-of-that-name/a.jsonl"), tmp_path / "run", "~nobody-of-that-name/a.jsonl: `~` begins it")
    against = {"e": {"paths": [str(tmp_path / "folder")], "fields": ["q"]}}
    source = jsonl(write_rows(tmp_path / "a.jsonl", ROWS))
    refused(source, tmp_path / "run", "a folder; name the files in it", data__decontamination__against=against)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", ROWS)
    file.chmod(stat.S_IWUSR)
    refused(jsonl(file), tmp_path / "run", "cannot be read; change its permissions")


def test_a_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/a\xff.jsonl"
    with open(path, "wb") as file:
        file.write(RAW)
    refused(jsonl(tmp_path / "a*.jsonl"), tmp_path / "run", "its name is not UTF-8, as a manifest must be; rename it")


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_beyond_the_limit_is_one_bad_row_wherever_it_is_cut(end, tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_ROW_BYTES", 1000)
    monkeypatch.setattr(lines, "_SKIPPED", 64)
    monkeypatch.setattr("megatron_octo.data.pieces.PIECE_BYTES", 300)
    rows = [json.dumps(row) for row in ROWS]
    rows[100] = json.dumps({"text": "x" * 5000})
    rows[150] = json.dumps({"text": "y" * 988})
    assert len(rows[150]) == 1000
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(rows) + end)
    for path, data in ((file, None), (tmp_path / "a.gz", gzip.compress(file.read_bytes()))):
        if data is not None:
            path.write_bytes(data)
        # one worker: another process would not have the limits set above
        run, _ = run_prepare(recipe_of({"a": jsonl(path, max_bad_rows=0.01)}), tmp_path / f"run-{path.name}", workers=1)
        manifest = read_manifest(run.source("a"))
        texts = read_texts(run.source("a"), "train") + read_texts(run.source("a"), "validation")
        assert manifest.bad_rows == {"longer than 16 MiB": 1} and manifest.rows_read == 200
        assert len(texts) == 199 and "y" * 988 in texts


@pytest.mark.slow
def test_a_line_of_200_megabytes_in_little_memory(tmp_path):
    """In a process of its own, whose memory is measured."""
    import subprocess
    import sys

    file = tmp_path / "a.jsonl"
    with open(file, "wb") as out:
        out.write(RAW + b'{"text": "')
        for _ in range(200):
            out.write(b"x" * (1 << 20))
        out.write(b'"}\n' + RAW.replace(b"number", b"again"))
    code = (
        "import sys\nfrom megatron_octo.data.pieces import pieces_of\nfrom pathlib import Path\n"
        "from megatron_octo.data.rows.files import open_rows\nfrom megatron_octo.data.rows.row import BadRow\n"
        "pieces = pieces_of('a', None, [Path(sys.argv[1])], ['text'])\n"
        "rows = [row for piece in pieces for row in open_rows(piece, ['text'])]\n"
        "bad = [str(row) for row in rows if isinstance(row, BadRow)]\n"
        "peak = Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]\n"
        "print(len(rows), bad, int(peak) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=120, check=True
    )
    count, _, rest = done.stdout.partition(" ")
    assert count == "401" and "['longer than 16 MiB']" in rest
    assert int(rest.split()[-1]) < 200


def test_nesting_and_numbers_in_a_line(tmp_path):
    deep = '{"text": "d", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
    many = '{"text": "m", "n": ' + "9" * 5000 + "}"
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([*(json.dumps(row) for row in ROWS), deep, many, '{"text": ' + "9" * 5000 + "}"]))
    texts, manifest = prepared(jsonl(file, max_bad_rows=0.05), tmp_path / "run")
    assert manifest.bad_rows == {"field 'text' is a number, not text": 1, "nested too deep": 1}
    assert texts == sorted([*TEXTS, "m"])


def test_a_folder_in_the_way_without_a_manifest(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "run" / "data" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"not a prepared source \(no manifest.json\), but in its place; remove it"):
        run_prepare(recipe_of({"a": jsonl(file)}), tmp_path / "run")


def test_shipped_recipes_say_that_nothing_was_streamed_from_the_hub():
    text = (Path(recipe_module.__file__).parent / "library" / "octothinker-1b.yaml").read_text()
    assert "none of them has been streamed from the real hub" in text
