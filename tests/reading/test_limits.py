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
from megatron_octo.reading.yaml_text import parse_yaml
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
        ("a: 1\na: 2", "written twice"),
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
