"""Input that cannot be prepared: what is said, and that nothing is left behind."""

import gzip
import json

import pytest

from megatron_octo.data.manifest import read_manifest, verify_manifest
from megatron_octo.errors import DataError
from tests.data.helpers import jsonl, left_behind, recipe_of, run_prepare, write_rows


def fails(tmp_path, source, match, **overrides):
    recipe = recipe_of({"a": source}, **overrides)
    with pytest.raises(DataError, match=match) as caught:
        run_prepare(recipe, tmp_path / "run")
    from megatron_octo.runtime.run_folder import RunFolder

    assert left_behind(RunFolder(tmp_path / "run")) == []
    return str(caught.value)


def rows(count=100):
    return [{"text": f"text number {i}"} for i in range(count)]


def test_a_glob_that_matches_nothing(tmp_path):
    write_rows(tmp_path / "mine.jsonl", rows())
    fails(tmp_path, jsonl(tmp_path / "mien.jsonl"), r"'.*mien.jsonl' matches no file; did you mean '.*mine.jsonl'\?")
    fails(tmp_path, jsonl(tmp_path / "nowhere" / "*.gz"), r"matches no file \(relative to .*\); correct the path")


def test_nothing_is_read_before_all_is_found(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", rows())
    recipe = recipe_of({"good": jsonl(file), "gone": jsonl(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match=r"data\.sources\.gone\.paths"):
        run_prepare(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "data" / "good").exists()


def test_an_empty_file(tmp_path):
    (tmp_path / "a.jsonl").touch()
    fails(tmp_path, jsonl(tmp_path / "a.jsonl"), r"a.jsonl is empty; remove it from the list")
    (tmp_path / "b.jsonl").write_text("\n\n\n")
    fails(tmp_path, jsonl(tmp_path / "b.jsonl"), r"its input has no rows")


def test_too_many_bad_rows_are_listed_by_reason_file_and_line(tmp_path):
    lines = [json.dumps(row).encode() for row in rows(100)]
    lines[0], lines[10], lines[20] = b"{", b"[1]", b'{"txt": "x"}'
    lines[30], lines[40], lines[50] = b'{"text": 5}', b'{"text": ""}', b'{"text": "\xff"}'
    for i in range(60, 67):
        lines[i] = b"nonsense"
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join(lines))
    said = fails(tmp_path, jsonl(file), r"13 of 100 rows \(13.00%\) cannot be used, the limit is 0.10%")
    for line in (
        f"8 x not JSON: {file}:1, {file}:61, {file}:62, {file}:63, {file}:64, ...", f"1 x not an object: {file}:11",
        f"1 x no field 'text': {file}:21", f"1 x field 'text' is a number, not text: {file}:31",
        f"1 x field 'text' is empty: {file}:41", f"1 x not UTF-8: {file}:51",
        "raise data.sources.a.max_bad_rows",
    ):  # fmt: skip
        assert line in said


def test_a_compressed_file_that_is_cut_short(tmp_path):
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows(5000)).encode())
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(whole[: len(whole) // 2])
    fails(tmp_path, jsonl(file), r"a.jsonl.gz: damaged or cut short \(.*\); download the file again")
    file.write_bytes(b"not gzip at all")
    fails(tmp_path, jsonl(file), r"a.jsonl.gz: damaged or cut short")
    zst = tmp_path / "a.jsonl.zst"
    zst.write_bytes(b"not zstandard at all")
    fails(tmp_path, jsonl(zst), r"a.jsonl.zst: damaged or cut short")


def test_a_source_too_small_for_its_validation_split(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", rows(10))
    match = r"validation_documents = 10: the source has 10 documents .* leaves 0 to train on; lower it"
    fails(tmp_path, jsonl(file, validation_documents=10), match)
    fails(tmp_path, jsonl(file, validation_documents=64), r"validation_documents = 64")


def test_files_that_are_not_parquet_or_lack_the_field(tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 but not really")
    source = {"kind": "parquet", "paths": [str(file)]}
    fails(tmp_path, source, r"a.parquet is not a Parquet file .*; remove it")
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["x"]}), file)
    fails(tmp_path, source, r"a.parquet has no field 'text'; it has texts; did you mean 'texts'\?")


def test_a_data_set_that_the_hub_does_not_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = {"kind": "hub", "dataset": "nobody/no-such-data-set"}
    fails(tmp_path, source, r"'nobody/no-such-data-set' cannot be opened .* or download it and use a jsonl or parquet")


def test_evaluation_files_that_are_missing_or_lack_the_field(tmp_path):
    source = jsonl(write_rows(tmp_path / "a.jsonl", rows()))
    against = {"gsm8k": {"paths": [str(tmp_path / "test.jsonl")], "fields": ["question"]}}
    setting = {"data__decontamination__against": against}
    fails(tmp_path, source, r"against.gsm8k.paths: .*test.jsonl does not exist; correct it", **setting)
    write_rows(tmp_path / "test.jsonl", [{"question": "a"}, {"problem": "b"}])
    match = r"against.gsm8k: item 2 of .* has no text in field 'question'; correct `fields` \(it has problem\)"
    fails(tmp_path, source, match, **setting)


def test_executors_that_cannot_be_used_here(tmp_path):
    recipe = recipe_of({"a": jsonl(write_rows(tmp_path / "a.jsonl", rows()))})
    cases = [
        ("slurm", {}, "option partition is missing; give it"),
        ("slurm", {"partion": "x"}, "option 'partion' is unknown; known: partition"),
        ("slurm", {"partition": "x", "time": "1:00", "cpus_per_task": "two"}, "'two' is not a whole number"),
        ("local", {"partition": "x"}, "executor 'local' has no options"),
    ]
    for executor, options, match in cases:
        with pytest.raises(DataError, match=match):
            run_prepare(recipe, tmp_path / "run", executor=executor, executor_options=options)
    with pytest.raises(DataError, match="workers = 0: at least 1 is needed"):
        run_prepare(recipe, tmp_path / "run", workers=0)


@pytest.fixture
def prepared(tmp_path):
    recipe = recipe_of({"a": jsonl(write_rows(tmp_path / "a.jsonl", rows()))})
    return run_prepare(recipe, tmp_path / "run")[0].source("a")


def test_a_manifest_that_is_missing_or_damaged(prepared):
    with pytest.raises(DataError, match=r"not prepared \(no manifest.json\); run `octo data prepare`"):
        read_manifest(prepared.parent / "b")
    path = prepared / "manifest.json"
    path.write_text(path.read_text().replace('"rows_read"', '"rows"'))
    with pytest.raises(DataError, match=r"rows_read = .*; not a manifest that this version reads; remove .* and run"):
        read_manifest(prepared)


def test_tokens_that_differ_from_the_manifest(prepared):
    manifest = read_manifest(prepared)
    path = prepared / "train.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train.bin: SHA-256 \w+..., recorded as"):
        verify_manifest(prepared, manifest)
    path.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"train.bin: \d+ bytes, recorded with \d+ bytes"):
        verify_manifest(prepared, manifest)
    path.unlink()
    with pytest.raises(DataError, match=r"train.bin: missing, recorded with"):
        verify_manifest(prepared, manifest)
