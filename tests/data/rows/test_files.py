"""Files of every form, whole and cut, by their names and by others."""

import bz2
import gzip
import json
import lzma
import random
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_octo.data.rows.files import read_rows
from megatron_octo.data.rows.row import BadRow
from megatron_octo.errors import DataError
from tests.support import SHARED

DICE = random.Random(1)
ROWS = [{"text": f"{i}: {DICE.randbytes(40).hex()}", "n": i} for i in range(3000)]
RAW = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
HALF = RAW.index(b"\n", len(RAW) // 2) + 1


def zst(data, **settings):
    return zstandard.ZstdCompressor(**settings).compress(data)


def without_size(data):
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


def skippable(data):
    return b"\x53\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def long_window(data, log=28):
    parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": gzip.compress(RAW, mtime=0),
    "gzip-members": gzip.compress(RAW[:HALF]) + gzip.compress(RAW[HALF:]),
    "zst": zst(RAW),
    "zst-checksum": zst(RAW, write_checksum=True),
    "zst-no-size": without_size(RAW),
    "zst-frames": zst(RAW[:HALF]) + zst(b"") + without_size(RAW[HALF:]),
    "zst-skippable": skippable(b"x" * 100) + zst(RAW[:HALF]) + skippable(b"") + zst(RAW[HALF:]) + skippable(b"end"),
    "zst-long-window": long_window(RAW),
    "xz": lzma.compress(RAW),
    "xz-streams": lzma.compress(RAW[:HALF]) + b"\0" * 8 + lzma.compress(RAW[HALF:]),
    "bzip2": bz2.compress(RAW),
    "bzip2-streams": bz2.compress(RAW[:HALF]) + bz2.compress(RAW[HALF:]),
}


def read(path, *fields):
    return [row for _, row in read_rows(path, fields or ("text",))]


@pytest.mark.parametrize("suffix", ["", ".jsonl", ".gz", ".zst", ".zstd", ".xz"])
@pytest.mark.parametrize("kind", PACKED)
def test_what_a_file_is_its_first_bytes_say(kind, suffix, tmp_path):
    """../shared/cases/wrong-container and zst-long-window."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACKED[kind])
    assert read(path) == ROWS


@pytest.mark.parametrize("kind", PACKED)
def test_a_cut_file_is_never_taken_for_whole(kind, tmp_path):
    """../shared/cases/zst-truncated: cut anywhere but where a frame ends."""
    path, data = tmp_path / "a.jsonl", PACKED[kind]
    places = {1, 2, 5, 9, 17, len(data) // 3, len(data) // 2, *range(len(data) - 12, len(data))}
    for at in sorted(places - ends(kind)):
        path.write_bytes(data[:at])
        try:
            rows = read(path)
        except DataError:
            continue
        # too little of a mark to be one, so it is text; or cut after the last row
        assert all(isinstance(row, BadRow) for row in rows) if at < 6 else rows == ROWS, f"cut at {at}"
        assert at < 6 or kind in ("zst-frames", "zst-skippable", "zst-no-size", "zst-long-window"), f"cut at {at}"


def ends(kind):
    """Where a frame ends within the file: to cut there leaves a proper file, which nothing can tell."""
    first = {
        "gzip-members": gzip.compress(RAW[:HALF]), "zst-frames": zst(RAW[:HALF]),
        "xz-streams": lzma.compress(RAW[:HALF]), "bzip2-streams": bz2.compress(RAW[:HALF]),
    }.get(kind, b"")  # fmt: skip
    return {len(first)}


@pytest.mark.parametrize("kind", ["gzip", "zst", "zst-no-size", "zst-checksum", "xz", "bzip2"])
def test_garbage_after_the_end_is_no_end(kind, tmp_path):
    path = tmp_path / "a"
    for garbage in (b"garbage", b"{}", PACKED[kind][:20], b"\x28\xb5"):
        path.write_bytes(PACKED[kind] + garbage)
        with pytest.raises(DataError, match="damaged or cut short"):
            read(path)
    path.write_bytes(PACKED[kind] + b"\0" * 512)  # padding, as tapes and archives leave it
    assert len(read(path)) == len(ROWS)


@pytest.mark.parametrize("kind", ["gzip", "zst-checksum", "xz", "bzip2"])
def test_a_flipped_bit_is_found(kind, tmp_path):
    data = bytearray(PACKED[kind])
    data[len(data) // 2] ^= 4
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match="damaged or cut short"):
        read(tmp_path / "a")


def test_a_window_beyond_the_limit_says_so(tmp_path):
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(32 - 10) << 3]) + b"\x01\x00\x00"  # a window of 4 GiB, one empty block
    (tmp_path / "a").write_bytes(header)
    with pytest.raises(
        DataError, match=r"needs a larger window than 2,048 MiB .*; compress it again with a smaller one"
    ):
        read(tmp_path / "a")


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.jsonl", RAW)
    return path.read_bytes()


def arrow_file():
    out = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(out, pyarrow.schema([("text", pyarrow.string())])) as writer:
        writer.write(pyarrow.record_batch({"text": ["x"]}))
    return out.getvalue().to_pybytes()


def test_what_is_not_read_is_named(tmp_path):
    tar = b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000" + bytes(248) + RAW
    cases = {
        "a ZIP archive": archive(tmp_path / "z"), "a tar archive": tar, "gzip of a tar archive": gzip.compress(tar),
        "UTF-16 text": RAW.decode().encode("utf-16"), "UTF-32 text": RAW.decode().encode("utf-32"),
        "LZ4": b"\x04\x22\x4d\x18" + bytes(20), "an Arrow file": arrow_file(),
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a web page": b"<!DOCTYPE html><html>404</html>", "a 7-Zip archive": b"7z\xbc\xaf\x27\x1c" + bytes(20),
        "Zstandard of gzip": zst(gzip.compress(RAW)), "gzip of UTF-16": gzip.compress(RAW.decode().encode("utf-16")),
    }  # fmt: skip
    for name, data in [*cases.items(), ("UTF-16 text", RAW.decode().encode("utf-16-be"))]:
        (tmp_path / "a.jsonl").write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.*by its first bytes"):
            read(tmp_path / "a.jsonl")


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "data",
    [
        BOM + RAW, BOM + RAW[:HALF] + BOM + RAW[HALF:], RAW + BOM, gzip.compress(BOM + RAW), RAW.rstrip(b"\n"),
        RAW.replace(b"\n", b"\r\n"), b"\n \n" + RAW.replace(b"\n", b"\n\n\t\n"), BOM + b"\n" + RAW,
        json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode(), BOM + json.dumps(ROWS, indent=2).encode(),
        gzip.compress(json.dumps(ROWS).encode()), b"[\n" + RAW.strip().replace(b"\n", b",\n") + b"\n]\n",
        json.dumps({str(i): row for i, row in enumerate(ROWS)}).encode(),
        json.dumps({str(i): row for i, row in enumerate(ROWS)}, indent=1).encode(),
    ],
    ids=[
        "bom", "boms", "bom-at-end", "bom-gz", "no-end", "crlf", "blank", "bom-alone",
        "list", "list-lines", "list-bom", "list-gz", "list-rows", "object", "object-lines",
    ],
)  # fmt: skip
def test_the_same_rows_however_they_are_written(data, tmp_path):
    """../shared/cases/jsonl-bom and wrong-container/array.json."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert read(path) == ROWS


def test_one_object_is_a_row_if_it_has_the_field(tmp_path):
    path = tmp_path / "a.json"
    for value, rows in (
        ({"text": "x"}, [{"text": "x"}]),
        ({"meta": {"text": "x"}}, [{"text": "x"}]),
        ({"text": {"a": 1}}, [{"text": {"a": 1}}]),
        ({"a": 1, "b": {"text": "x"}}, [{"a": 1, "b": {"text": "x"}}]),
    ):
        path.write_text(json.dumps(value, indent=1))
        assert read(path) == rows
    path.write_text(json.dumps({"meta": {"text": "x"}}))
    assert read(path, "meta.text") == [{"meta": {"text": "x"}}]


def test_a_list_that_is_cut_or_broken_is_refused_with_the_item(tmp_path):
    path = tmp_path / "a.json"
    text = json.dumps(ROWS)
    for damaged, match in (
        (text[: len(text) // 2], r"item \d+: .*cut short"), (text[:-1], "item 3001: the file ends in the middle"),
        (text + "x", "something follows the list"),
        (text.replace("}, {", "} {", 1), r"item 2: '\{' instead of a comma"),
        ("[", "item 1: not JSON"), ("[1,]", "item 2"), ("[" * 100_000, "nested too deep"),
    ):  # fmt: skip
        path.write_text(damaged)
        with pytest.raises(DataError, match=match):
            read(path)
    path.write_bytes(text.encode().replace(b"0: ", b"\xff: ", 1))
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)


def test_values_that_json_does_not_have_spoil_no_row(tmp_path):
    """../shared/cases/jsonl-nan-surrogate."""
    path = tmp_path / "a.jsonl"
    others = ["NaN", "Infinity", "-Infinity", '"\\ud800"', "1e999", "9" * 5000, "-" + "9" * 30]
    path.write_text("".join(f'{{"text": "x{i}", "other": {other}}}\n' for i, other in enumerate(others)))
    assert [row["text"] for row in read(path)] == [f"x{i}" for i in range(len(others))]
    path.write_text("[" + ",\n".join(f'{{"text": "x{i}", "other": {other}}}' for i, other in enumerate(others)) + "]")
    assert [row["text"] for row in read(path)] == [f"x{i}" for i in range(len(others))]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
)
def test_invalid_utf8_in_parquet_is_one_bad_row(kind, tmp_path):
    """../shared/cases/parquet-invalid-utf8."""
    values = [f"row {i}".encode() for i in range(2000)]
    values[700] = b"caf\xe9"
    column = pyarrow.array(values, pyarrow.binary())
    if pyarrow.types.is_dictionary(kind):
        indices, words = pyarrow.array(range(2000), pyarrow.int32()), column.view(pyarrow.string())
        column = pyarrow.DictionaryArray.from_arrays(indices, words)
    elif kind == pyarrow.string_view():
        column = column.view(pyarrow.string()).cast(kind, safe=False)
    else:
        column = (column.cast(pyarrow.large_binary()) if kind == pyarrow.large_string() else column).view(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", store_schema=True)
    rows = read(tmp_path / "a.parquet")
    assert str(rows[700]) == "not UTF-8" and isinstance(rows[700], BadRow)
    assert [row["text"] for row in rows[:700] + rows[701:]] == [v.decode() for v in values[:700] + values[701:]]


def test_invalid_utf8_inside_nested_parquet(tmp_path):
    texts = pyarrow.array([b"a", b"\xff", b"c", b"d"], pyarrow.binary()).view(pyarrow.string())
    nested = pyarrow.ListArray.from_arrays(
        pyarrow.array([0, 1, 2, 4]), pyarrow.StructArray.from_arrays([texts], ["content"])
    )
    pyarrow.parquet.write_table(pyarrow.table({"messages": nested, "text": ["x", "y", "z"]}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", "messages.0.content")
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]
    assert [row["text"] for row in read(tmp_path / "a.parquet", "text")] == ["x", "y", "z"]  # it is not read


@pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="../shared is not here")
def test_the_cases_at_hand():
    counts = {
        "eval-file-formats/eval.jsonl.gz": 1,
        "eval-file-formats/eval.parquet": 1,
        "eval-file-formats/eval_bom.jsonl": 1,
        "eval-file-formats/eval_u2028.jsonl": 4,
        "jsonl-bom/bom.jsonl": 2000,
        "jsonl-nan-surrogate/nan.jsonl": 200,
        "jsonl-nan-surrogate/surrogate.jsonl": 200,
        "parquet-invalid-utf8/badutf8.parquet": 200,
        "wrong-container/array.json": 200,
        "wrong-container/misnamed.jsonl": 2000,
        "wrong-container/plain.jsonl.xz": 2000,
        "wrong-container/plain.jsonl.zstd": 2000,
        "zst-long-window/long.jsonl.zst": 6000,
    }
    for name, count in counts.items():
        assert len(read(SHARED / "cases" / name, "text", "q")) == count, name
    with pytest.raises(DataError, match="cut short"):
        read(SHARED / "cases/zst-truncated/cut.jsonl.zst")
