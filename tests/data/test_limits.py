"""Files that a preparation writes or is given, damaged in every way: our own error, soon."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_octo.data.heldout import read_heldout
from megatron_octo.data.manifest import MANIFEST, SourceManifest, read_manifest, verify_manifest
from megatron_octo.data.rows.files import read_rows
from megatron_octo.data.tally import Tally, read_progress, read_report
from megatron_octo.data.tokenizer import load_tokenizer
from megatron_octo.data.tokenizer_file import read_tokenizer_file
from megatron_octo.errors import DataError
from megatron_octo.recipe import load_recipe
from tests.data.helpers import jsonl, recipe_of, run_prepare, write_rows
from tests.data.rows.test_files import PACKED
from tests.data.test_tokenizer import bpe, model

FUZZ = settings(
    max_examples=150, deadline=4000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
JSON_TEXT = st.one_of(
    st.text(max_size=200), st.text(alphabet='[]{},:"\\0123456789eE.-+ntfu \n\ufeff\u2028', max_size=200)
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    recipe = recipe_of({"a": jsonl(write_rows(root / "a.jsonl", [{"text": f"text {i}"} for i in range(50)]))})
    return run_prepare(recipe, root / "run")[0].source("a")


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "5",
        '"x"',
        "{",
        "\ufeff",
        "[" * 100_000,
        '{"format_version": ' + "1" * 5000 + "}",
        "\0" * 100,
    ],
)
def test_manifests_that_are_none(copy, text):
    (copy / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"remove .*/a and run `octo data prepare`|text with a NUL|nested"):
        read_manifest(copy)


def test_a_manifest_that_is_a_folder_or_huge(copy):
    (copy / MANIFEST).unlink()
    (copy / MANIFEST).mkdir()
    with pytest.raises(DataError, match="not a regular file"):
        read_manifest(copy)
    (copy / MANIFEST).rmdir()
    with open(copy / MANIFEST, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="and at most"):
        read_manifest(copy)


@pytest.mark.parametrize(
    "path", ["../../x.bin", "/etc/passwd", "a/b.bin", "..", "", ".hidden.bin", "x\n.bin", "x" * 5000, 5, None, ["a"]]
)
def test_a_manifest_never_leads_out_of_its_folder(copy, path):
    value = json.loads((copy / MANIFEST).read_text())
    value["train"]["files"][0]["path"] = path
    (copy / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"train.files.0.path = "):
        read_manifest(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["train"].update(files=[]),
        lambda m: m["train"]["files"].pop(),
        lambda m: m["train"]["files"].append(m["train"]["files"][0]),
        lambda m: m["train"].update(tokens=-1),
        lambda m: m["validation"].update(documents=1.5),
        lambda m: m["train"]["files"][0].update(bytes=10**30),
        lambda m: m["train"]["files"][0].update(bytes=-5),
        lambda m: m["train"]["files"][0].update(sha256="abc"),
        lambda m: m["tokenizer"].update(vocab_size=None),
        lambda m: m.update(format_version=2),
        lambda m: m.update(bad_rows={"x": "many"}),
        lambda m: m.pop("validation"),
        lambda m: m.update(more=1),
    ],
)
def test_manifests_with_a_field_that_cannot_be(copy, change):
    value = json.loads((copy / MANIFEST).read_text())
    change(value)
    (copy / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(DataError):
        read_manifest(copy)


def test_files_are_hashed_and_heard_of(copy):
    manifest, heard = read_manifest(copy), []
    verify_manifest(copy, manifest, heard.append)
    assert sum(heard) == sum(path.stat().st_size for path in copy.iterdir()) - (copy / MANIFEST).stat().st_size
    data = bytearray((copy / "validation.idx").read_bytes())
    data[-1] ^= 1
    (copy / "validation.idx").write_bytes(data)
    verify_manifest(copy, manifest, splits=("train",))
    with pytest.raises(DataError, match=r"validation\.idx: SHA-256"):
        verify_manifest(copy, manifest)
    (copy / "train.bin").unlink()
    (copy / "train.bin").mkdir()
    with pytest.raises(DataError, match=r"train\.bin: missing"):
        verify_manifest(copy, manifest)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"question": "1+1", "prompt": "x", "answer": "2"}\n{"question": "1+', "line 2: not JSON"),
        ('{"question": "1+1", "prompt": "x"}', "no field 'answer'"),
        ('{"question": 5, "prompt": "x", "answer": "2"}', "field 'question' is a number"),
        ("", "empty; remove it"), ("[1]", "not an object"), ("\0" * 50, "not JSON"), ("[" * 100_000, "nested too deep"),
    ],
)  # fmt: skip
def test_heldout_problems_that_are_damaged(text, match, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_heldout(path)


def test_reports_and_progress_that_are_torn(tmp_path):
    tally = Tally(str(tmp_path))
    tally.begin(0)
    tally.finish()
    path = tmp_path / "00000.json"
    whole = path.read_text()
    assert read_report(tmp_path, 0)["rows"] == 0 and read_report(tmp_path, 1) is None
    for text in ("", "{}", "[]", whole[:-5], whole.replace("0", "-1", 1), whole.replace("{}", "5", 1), "\xff"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"again|copy"):
            read_report(tmp_path, 0)
        read_progress(tmp_path, 0)  # a bar is no reason to stop
    (tmp_path / "00001.progress").write_text('{"documents": 1, "tok')
    assert read_progress(tmp_path, 1) is None


def tokenizer_folder(tmp_path, config=None, **files):
    folder = tmp_path / "mine"
    load_tokenizer(model(), folder)
    if config is not None:
        value = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(value | config))
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return load_recipe("tiny", [f"model.tokenizer={folder}"]).model


def said_of(section, tmp_path):
    """The message that refuses a tokenizer; empty where it is accepted."""
    try:
        load_tokenizer(section, tmp_path / "run" / "tokenizer")
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tokenizer_class", ["MineTokenizer", "LlamaTokenizer", None])
def test_code_of_a_tokenizer_is_never_run(tokenizer_class, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    config = {"auto_map": {"AutoTokenizer": ["mine.MineTokenizer", "mine.MineTokenizer"]}}
    if tokenizer_class is not None:
        config["tokenizer_class"] = tokenizer_class
    section = tokenizer_folder(tmp_path, config)
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nMineTokenizer = 5\n")
    said = said_of(section, tmp_path)
    assert "needs code of its own (auto_map), which is never run here" in said or (
        not said and tokenizer_class != "MineTokenizer"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"tokenizer": ""}, "is not JSON"),
        ({"tokenizer": "not json"}, "is not JSON"),
        ({"tokenizer": "[]"}, "holds a list, not a tokenizer"),
        ({"tokenizer": "{}"}, "is not a tokenizer"),
        ({"tokenizer": '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'}, "has no tokens"),
        ({"tokenizer": '{"model": {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"}}'},
         "a token with id 4294967295"),
        ({"tokenizer": '{"a": ' + "[" * 5000}, "is not JSON"),
        ({"tokenizer_config": ""}, "is not JSON"),
        ({"tokenizer_config": "[]"}, "holds a list, not an object"),
        ({"tokenizer_config": '{"tokenizer_class": 5}'}, "not a tokenizer that transformers reads"),
        ({"tokenizer_config": '{"tokenizer_class": "No", "added_tokens_decoder": []}'}, None),
    ],
)  # fmt: skip
def test_tokenizers_that_are_damaged(files, match, tmp_path):
    section = tokenizer_folder(tmp_path, **files)
    said = said_of(section, tmp_path)
    assert (match or "") in said and (said or match is None)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_tokenizer_that_is_a_long_name_or_larger_than_the_embedding(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("x" * 5000, "~nobody/x", "a/b/c/d"):
        with pytest.raises(DataError, match="neither a folder nor a tokenizer"):
            load_tokenizer(model(f"model.tokenizer={name}"), tmp_path / "run" / "tokenizer")
    bpe(tmp_path / "large")
    sets = (f"model.tokenizer={tmp_path / 'large'}", "model.end_of_document=<eos>")
    with pytest.raises(DataError, match=r"has ids up to \d+, but model.architecture.vocab_size is 264"):
        load_tokenizer(model(*sets), tmp_path / "run" / "tokenizer")


# ---- any bytes: nothing but our own error


@FUZZ
@given(st.one_of(st.binary(max_size=300), JSON_TEXT.map(lambda text: text.encode())))
def test_any_bytes_as_rows(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    read_or_refuse(tmp_path / "a")


@FUZZ
@given(st.sampled_from(sorted(PACKED)), st.integers(0, 10**9), st.integers(0, 255), st.integers(0, 10**9))
def test_any_change_of_a_packed_file(tmp_path, kind, at, byte, cut):
    data = bytearray(PACKED[kind])
    data[at % min(len(data), 2000)] = byte
    (tmp_path / "a").write_bytes(data[: max(1, cut % (2 * len(data)))])
    read_or_refuse(tmp_path / "a")


@FUZZ
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=4))
def test_any_change_of_a_parquet_file(tmp_path, at, change):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "whole.parquet"
    if not path.exists():
        rows = [{"text": f"row {i}", "more": [{"a": i}]} for i in range(20)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(change)] = change
    (tmp_path / "a").write_bytes(data)
    read_or_refuse(tmp_path / "a")


def read_or_refuse(path):
    try:
        for _ in read_rows(path, ("text",), 1 << 26):
            pass
    except DataError:
        return


@FUZZ
@given(st.one_of(JSON_TEXT, st.integers(0, 10**6)), st.text(max_size=3))
def test_any_text_as_manifest(prepared, tmp_path, text, change):
    if isinstance(text, int):  # a manifest with some characters changed
        whole = (prepared / MANIFEST).read_text()
        text = whole[: text % len(whole)] + change + whole[text % len(whole) + 1 :]
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        manifest = read_manifest(tmp_path)
    except DataError:
        return
    assert isinstance(manifest, SourceManifest)
    assert all(os.sep not in file.path for split in (manifest.train, manifest.validation) for file in split.files)


@FUZZ
@given(st.one_of(JSON_TEXT, st.integers(0, 10**6)), st.text(max_size=3))
def test_any_text_as_tokenizer(tmp_path, text, change):
    if isinstance(text, int):
        if not (tmp_path / "whole").exists():
            bpe(tmp_path / "whole")
        whole = (tmp_path / "whole" / "tokenizer.json").read_text()
        text = whole[: text % len(whole)] + change + whole[text % len(whole) + 1 :]
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        tokenizer = read_tokenizer_file(path, "model.tokenizer")
    except DataError:
        return
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.truncation is None and tokenizer.padding is None
