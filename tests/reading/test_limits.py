"""Readers of text, JSON and YAML: bad input of every kind ends in our own error, soon and in little memory."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.errors import DataError, RecipeError
from megatron_octo.reading.json_text import parse_json, read_json_object, read_record
from megatron_octo.reading.text import expanded, read_text
from megatron_octo.reading.values import MOST_DEPTH
from megatron_octo.reading.yaml_text import dump_yaml, parse_yaml
from megatron_octo.runtime.recorded_files import RecordedFile

FUZZ = settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
"""10^9 values in 400 bytes."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested"),
        ("[" * 500 + "]" * 500, f"nested more than {MOST_DEPTH} deep"),
        ("1" * 5000, "an integer of 5000 digits"),
        (str(2**63), "an integer of 64 bits"),
        ("1e999", "beyond the largest number"),
        ("NaN", "NaN is not a JSON value"),
        ('{"a": -Infinity}', "-Infinity is not a JSON value"),
        ('"\\ud800"', "a lone surrogate"),
        ('"\\u0000"', "a NUL character"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
    ],
)
def test_json(text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        parse_json(text, "here", DataError)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "once aliases are expanded"),
        ("a: &a [*a]", "*a stands inside &a"),
        ("a: &a {b: {c: *a}}", "*a stands inside &a"),
        ("[" * 100_000, "nested more than"),
        ("a: " * 3, "not YAML"),
        ("seed: " + "1" * 5000, "holds a value that YAML cannot read"),
        ("seed: " + "1" * 100, "integer of"),
        ("a: .inf", "not a finite number"),
        ("a: .nan", "not a finite number"),
        ("a: 2024-99-99", "holds a value that YAML cannot read"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("a: !!int 'x'", "holds a value that YAML cannot read"),
        ('a: "\\0"', "a NUL character"),
        ("a: \x07", "not YAML"),
        ("description: " + "x" * 20_000_000, "20,000,013 characters"),
        ("? [a, b]\n: 1", "cannot be a key"),
        ("? {a: 1}\n: 1", "cannot be a key"),
        ("- a\n- &b\n- *c", "not YAML"),
        ("a: 1\na: 2", "'a' is written twice (line 2); keep one of them"),
        ("b: {a: 1, 'a': 2}", "'a' is written twice (line 1)"),
        ("1: a\n0x1: b", "a key is written twice"),
        ("a: &b [1, 2]\n*b : c", "a list or mapping cannot be a key (line 2)"),
        ("a: &b {c: 1}\nd: {<<: *b}", "<< is not merged here (line 2); write the keys out"),
        ("a: 1\nb: 010", "010 is octal in YAML 1.1 and decimal in YAML 1.2 (line 2); leave the leading zero out"),
        ("a: -007", "leading zero"),
        ("a: !!omap [b: 1, b: 2]", "holds a value that YAML cannot read"),
        ("a: b: c", "line 1"),
    ],
)
def test_yaml(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        parse_yaml(text, "here", RecipeError)
    assert len(str(caught.value)) < 800


def test_yaml_that_is_right() -> None:
    assert parse_yaml("a: &x {b: 5e-5}\nc: *x\nd: [1, ~, true]", "here", RecipeError) == {
        "a": {"b": 5e-5}, "c": {"b": 5e-5}, "d": [1, None, True],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("5e-5", 5e-5), ("-1e6", -1e6), ("1.5", 1.5), (".5", 0.5), ("0.5", 0.5), ("1_000_000", 1_000_000), ("0", 0),
        ("0o17", 15), ("0x1F", 31), ("'010'", "010"), ("12:30", "12:30"), ("1.2.3", "1.2.3"),
        ("true", True), ("False", False), ("yes", "yes"), ("No", "No"), ("on", "on"), ("y", "y"),
        ("~", None), ("", None),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    """But for numbers with underscores, which are text there."""
    read = parse_yaml(f"a: {written}", "here", RecipeError)["a"]
    assert read == value and type(read) is type(value)


TEXTS = (
    "", " x ", "a: b", "# x", "a\nb", "- a", "'", '"', "\\", "\t", "{", "é✓😀", "\u2028", "x" * 200 + " " + "y" * 100,
    "yes", "no", "on", "y", "true", "null", "~", "<<", "=", "1e5", "5e-5", "+.5e3", "-1e5", "1_0e1", "1.5E+3", "1.",
    ".5", "0", "-1", "010", "0_1", "0o17", "0o", "0x1f", "0b1", "1_000", "12:30", "2024-01-01", ".inf", ".nan", "+",
    ".", "1e",
)  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    value = {"texts": list(TEXTS), "numbers": [1e-5, 1e300, 5.0, -1e-8, 1e16, 0.1, 10**18, 0, -7], "more": [True, None]}
    text = dump_yaml(value)
    assert parse_yaml(text, "here", RecipeError) == value
    assert dump_yaml(parse_yaml(text, "here", RecipeError)) == text


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a", DataError) == Path("/home/me/a") and expanded(Path("b/~"), DataError) == Path("b/~")
    for path in ("~no-such-user/x", "~a\0b/x", "~" + "x" * 5000):
        with pytest.raises(RecipeError, match=r"^some\.key: ~.*no user of that name has a home folder") as caught:
            expanded(path, RecipeError, "some.key")
        assert len(str(caught.value)) < 500


def test_files(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "big").write_bytes(b"x" * 101)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf{}")
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    assert read_text(tmp_path / "bom", DataError) == "{}"
    for name, message in {
        "latin": "not UTF-8 at byte 0",
        "big": "101 bytes, and at most 100",
        "fifo": "not a regular file",
        ".": "not a regular file",
        "absent": "No such file",
        "x" * 5000: "File name too long",
        "a\0b": "null byte",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read_text(tmp_path / name, DataError, most_bytes=100)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "a list where an object is expected"),
        ("null", "null where an object is expected"),
        ("{}", "path = {}: Field required"),
        ('{"path": 1, "bytes": 1, "sha256": ""}', "path = 1: Input should be a valid string"),
        ('{"path": "a", "bytes": 1, "sha256": "", "more": 1}', "more = 1: Extra inputs"),
    ],
)
def test_records(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_record(tmp_path / "record.json", RecordedFile, DataError, "make it again")


def test_an_object_that_lacks_a_key(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json_object(tmp_path / "a.json", DataError, needs=("a",)) == {"a": 1}
    with pytest.raises(DataError, match="no key b, c; copy it again"):
        read_json_object(tmp_path / "a.json", DataError, needs=("a", "b", "c"))


@FUZZ
@given(st.one_of(st.text(), st.text(alphabet='[]{},:"\\0123456789eE.-+ntfu \n')))
def test_any_text_as_json(text: str) -> None:
    try:
        parse_json(text, "here", DataError)
    except DataError:
        return


@FUZZ
@given(st.one_of(st.text(), st.text(alphabet="[]{},:&*!|>-?'\"\\%@#~<=. \nab01")))
def test_any_text_as_yaml(text: str) -> None:
    try:
        parse_yaml(text, "here", RecipeError)
    except RecipeError:
        return
