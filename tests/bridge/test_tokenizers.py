"""A tokenizer goes with a model whose embedding has a row for each of its tokens, and is never run as code."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.tokenizer_check import check_tokenizer
from megatron_octo.errors import ModelError
from megatron_octo.recipe import Parallel
from tests.bridge.models import make_model
from tests.support import files_under

ROWS = 261
"""Rows of the small models' embedding."""


def pieces(count: int) -> bytes:
    """A sentencepiece model: so many pieces, a trainer's settings and a normalizer's."""
    piece = bytes([0x0A, 3]) + b"abc"
    return b"".join(bytes([0x0A, len(piece)]) + piece for _ in range(count)) + bytes([0x12, 2, 0x18, 1, 0x1A, 0])


def bpe(count: int) -> dict:
    return {"model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(count)}, "merges": []}}


FORMS = {
    "vocabulary": lambda n: {"tokenizer.json": bpe(n)},
    "list": lambda n: {"tokenizer.json": {"model": {"type": "Unigram", "vocab": [[f"t{i}", 0.0] for i in range(n)]}}},
    "added": lambda n: {"tokenizer.json": bpe(9) | {"added_tokens": [{"id": n - 1, "content": "<pad>"}]}},
    "decoder": lambda n: {
        "tokenizer.json": bpe(9),
        "tokenizer_config.json": {"added_tokens_decoder": {str(n - 1): {"content": "<pad>"}}},
    },
    "tables": lambda n: {"vocab.json": {"a": 0}, "added_tokens.json": {"<pad>": n - 1}},
    "sentencepiece": lambda n: {"tokenizer.model": pieces(n)},
}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_token_without_a_row_is_refused_at_import_and_export(form, tmp_path):
    hf = make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "bare", Parallel())
    write(hf, FORMS[form](ROWS + 1))
    before = files_under(tmp_path)
    with pytest.raises(ModelError, match=f"has token {ROWS} .*embedding has {ROWS} rows"):
        import_checkpoint(hf, tmp_path / "megatron", Parallel())
    if form != "tables":  # a tokenizer is known by tokenizer.json or tokenizer.model
        with pytest.raises(ModelError, match=f"has token {ROWS} "):
            export_checkpoint(tmp_path / "bare", tmp_path / "back", tokenizer=hf)
    assert files_under(tmp_path) == before
    write(hf, FORMS[form](ROWS))
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")


def test_a_tokenizer_that_an_import_kept_before_it_was_looked_at(tmp_path):
    """Checkpoints that were imported by an older release may hold one."""
    hf = make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    write(tmp_path / "megatron" / "hf", FORMS["vocabulary"](ROWS + 100))
    with pytest.raises(ModelError, match=f"has token {ROWS + 99} "):
        export_checkpoint(tmp_path / "megatron", tmp_path / "back")


def test_a_published_kind_of_tokenizer(tmp_path):
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    check_tokenizer(tmp_path, 4)
    with pytest.raises(ModelError, match="has token 3 "):
        check_tokenizer(tmp_path, 3)


def test_a_length_without_limit_as_transformers_writes_it(tmp_path):
    write(tmp_path / "t", FORMS["vocabulary"](9) | {"tokenizer_config.json": {"model_max_length": int(1e30)}})
    check_tokenizer(tmp_path / "t", 9)


def test_code_of_a_tokenizer_is_neither_run_nor_copied(tmp_path):
    hf = make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    code = f"open({str(tmp_path / 'marker')!r}, 'w')\n"
    config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    write(hf, {"tokenizer.json": bpe(9), "tokenizer_config.json": config, "tokenization_mine.py": code.encode()})
    for refused in (
        lambda: import_checkpoint(hf, tmp_path / "m", Parallel()),
        lambda: export_checkpoint(tmp_path / "megatron", tmp_path / "back", tokenizer=hf),
    ):
        with pytest.raises(ModelError, match=r"auto_map.*neither run nor copied"):
            refused()
    assert not (tmp_path / "marker").exists()


BROKEN = {
    "not JSON": {"tokenizer.json": b"{"},
    "a list": {"tokenizer.json": []},
    "empty": {"tokenizer.json": {}},
    "a file beside": {"tokenizer.json": {"secret": 1}},
    "model a list": {"tokenizer.json": {"model": [1]}},
    "numbers as text": {"tokenizer.json": {"model": {"vocab": {"a": "1"}}}},
    "a number of 10^30": {"tokenizer.json": ('{"model": {"vocab": {"a": ' + "9" * 30 + "}}}").encode()},
    "tokens that are numbers": {"tokenizer.json": bpe(9) | {"added_tokens": [3]}},
    "tokens without numbers": {"tokenizer.json": bpe(9) | {"added_tokens": [{"content": "x"}]}},
    "added tokens a number": {"tokenizer.json": bpe(9) | {"added_tokens": 7}},
    "deep": {"tokenizer.json": b'{"model":' + b"[" * 100_000},
    "not UTF-8": {"tokenizer.json": b'{"model": "\xff"}'},
    "decoder a list": {"tokenizer.json": bpe(9), "tokenizer_config.json": {"added_tokens_decoder": [1]}},
    "decoder by name": {"tokenizer.json": bpe(9), "tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}},
    "decoder by a long number": {"tokenizer_config.json": {"added_tokens_decoder": {"9" * 9999: {}}}},
    "settings a list": {"tokenizer.json": bpe(9), "tokenizer_config.json": []},
    "table of lists": {"added_tokens.json": {"a": []}},
    "sentencepiece cut": {"tokenizer.model": pieces(9)[:-3] + b"\x0a\x7f"},
    "sentencepiece of nothing known": {"tokenizer.model": b"\xff" * 50},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_tokenizers_that_are_none(name, tmp_path):
    with pytest.raises(ModelError) as caught:
        check_tokenizer(write(tmp_path / "t", BROKEN[name]), ROWS)
    assert len(str(caught.value)) < 1000


def test_what_transformers_cannot_read_is_our_error(tmp_path):
    """It is asked for the special tokens of a model that has no generation settings."""
    hf = make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    (tmp_path / "megatron" / "hf" / "generation_config.json").unlink()
    from tests.bridge.hostile import forget, vouch

    forget(tmp_path / "megatron", "hf/generation_config.json")
    vouch(tmp_path / "megatron")
    write(tmp_path / "t", {"tokenizer.json": {"version": "1.0", "model": {"type": "Unheard"}}})
    with pytest.raises(ModelError, match="transformers cannot read the tokenizer"):
        export_checkpoint(tmp_path / "megatron", tmp_path / "back", tokenizer=tmp_path / "t")


KEYS = ("model", "vocab", "added_tokens", "id", "content", "added_tokens_decoder", "0", "7")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "tokenizer.model"]),
       VALUES | st.binary(max_size=40))  # fmt: skip
def test_any_file_is_a_tokenizer_or_our_error(fuzzed, name, content):
    write(fuzzed, {name: content})
    try:
        with contextlib.suppress(ModelError):
            check_tokenizer(fuzzed, ROWS)
    finally:
        (fuzzed / name).unlink()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")
