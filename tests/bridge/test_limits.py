"""Hugging Face folders out of all bounds: each ends in our own error, before anything is written and within seconds."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_octo.bridge.base import check_base
from megatron_octo.bridge.config import architecture_of, read_config
from megatron_octo.bridge.hf_folder import INDEX, open_hf_folder
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.errors import CheckpointError, ModelError
from megatron_octo.recipe import Parallel, load_recipe
from megatron_octo.runtime.run_folder import RunFolder
from tests.bridge.hostile import vouch
from tests.bridge.models import SMALL, make_model
from tests.support import files_under

SECONDS = 20
LLAMA = {"model_type": "llama", "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-5, **SMALL}
QWEN = LLAMA | {"model_type": "qwen2"}


def refused(read, *arguments, error=ModelError):
    """The message of an error of ours, that comes soon and is not long."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        read(*arguments)
    assert time.monotonic() - start < SECONDS and len(str(caught.value)) < 2000
    assert "pydantic" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


CHANGES = {
    "initializer_range 0.0": ({"initializer_range": 0.0}, "initializer_range = 0.0"),
    "initializer_range 0": ({"initializer_range": 0}, "initializer_range"),
    "initializer_range -1": ({"initializer_range": -1}, "initializer_range"),
    "rope_theta null": ({"rope_theta": None}, "rope_theta = None"),
    "rope_theta 0": ({"rope_theta": 0}, "rope_theta = 0"),
    "rope_theta x": ({"rope_theta": "x"}, "rope_theta = 'x'"),
    "rope_theta inf": ({"rope_theta": float("inf")}, "rope_theta"),
    "rope_theta twice": (
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "keep one",
    ),
    "rope_parameters list": ({"rope_parameters": [1]}, "rope_parameters"),
    "rope_scaling number": ({"rope_scaling": 7}, "rope"),
    "rope factor text": ({"rope_scaling": {"rope_type": "llama3", "factor": "x"}}, ""),
    "rope factor 0": (
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 0.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
        "factor",
    ),
    "rope_type object": ({"rope_scaling": {"rope_type": {}}}, "rope"),
    "vocab_size 0": ({"vocab_size": 0}, "vocab_size = 0"),
    "vocab_size -5": ({"vocab_size": -5}, "vocab_size = -5"),
    "vocab_size 10^15": ({"vocab_size": 10**15}, "vocab_size = 1000000000000000"),
    "layers 10^9": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
    "layers 0": ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    "layers true": ({"num_hidden_layers": True}, "num_hidden_layers = True"),
    "layers text": ({"num_hidden_layers": "4"}, "num_hidden_layers = '4'"),
    "hidden_size text": ({"hidden_size": "64"}, "hidden_size"),
    "hidden_size 64.5": ({"hidden_size": 64.5}, "hidden_size"),
    "hidden_size list": ({"hidden_size": [64]}, "hidden_size"),
    "hidden_size null": ({"hidden_size": None}, "hidden_size"),
    "heads 0": ({"num_attention_heads": 0}, ""),
    "heads 5": ({"num_attention_heads": 5}, "5"),
    "key-value heads 3": ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
    "head_dim odd": ({"head_dim": 33}, "RoPE needs an even head"),
    "head_dim 0": ({"head_dim": 0}, "head_dim = 0"),
    "tied text": ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "epsilon 0": ({"rms_norm_eps": 0}, "rms_norm_eps"),
    "epsilon nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "activation list": ({"hidden_act": ["silu"]}, "hidden_act"),
    "model_type list": ({"model_type": ["llama"]}, "has no weight map"),
    "model_type long": ({"model_type": "x" * 100_000}, ""),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "quantized": ({"quantization_config": [1]}, "quantization_config"),
    "layer_types number": ({"layer_types": 3}, "layer_types = 3"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_configurations_out_of_bounds(name):
    changes, expected = CHANGES[name]
    assert expected in refused(architecture_of, LLAMA | changes, "a folder")


@pytest.mark.parametrize(
    "key", ["num_labels", "id2label", "pad_token_id", "architectures", "torch_dtype", "max_length"]
)
@pytest.mark.parametrize("value", [10**9, [], {"a": 1}, "x", None])
def test_what_decides_nothing_is_not_looked_at(key, value):
    """transformers would make a list of as many labels."""
    start = time.monotonic()
    assert architecture_of(LLAMA | {key: value}, "a folder").hidden_size == 64
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]},
        {"layer_types": ["sliding_attention"] * 4, "sliding_window": 128},
        {"layer_types": ["chunked_attention"] * 4},
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2},
        {"head_dim": 15},
    ],
    ids=range(5),
)
def test_qwen2_that_is_not_built_here(changes):
    architecture_of(QWEN, "a folder")
    assert "a folder: " in refused(architecture_of, QWEN | changes, "a folder")


TEXTS = {
    "empty": b"",
    "array": b"[]",
    "number": b"3",
    "null": b"null",
    "cut": b'{"hidden_size": 6',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep, open": b"[" * 1_000_000,
    "not UTF-8": b'{"model_type": "ll\xffama"}',
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "digits": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
    "huge float": b'{"rope_theta": 1e99999}',
    "NaN": b'{"rope_theta": NaN}',
    "Infinity": b'{"rope_theta": -Infinity}',
    "surrogate": b'{"model_type": "\\ud800"}',
    "NUL": b'{"model_type": "a\\u0000b"}',
    "NULs": b"\0" * 1000,
}


@pytest.fixture
def hf(tmp_path):
    return make_model("llama-3.2", tmp_path / "hf")


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_no_configuration(name, tmp_path):
    (tmp_path / "config.json").write_bytes(TEXTS[name])
    assert "config.json" in refused(read_config, tmp_path)


def test_a_configuration_of_100_mb(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(100 << 20)
    assert "104,857,600 bytes" in refused(read_config, tmp_path)


INDEXES = {
    **{f"text {name}": text for name, text in TEXTS.items()},
    "weight_map list": b'{"weight_map": ["model.safetensors"]}',
    "weight_map text": b'{"weight_map": "model.safetensors"}',
    "weight_map null": b'{"weight_map": null}',
    "weight_map empty": b'{"weight_map": {}}',
    "no weight_map": b'{"metadata": {}}',
    "numbers": b'{"weight_map": {"a": 1}}',
    "lists": b'{"weight_map": {"a": ["b"]}}',
    "null": b'{"weight_map": {"a": null}}',
    "above": b'{"weight_map": {"a": "../model.safetensors"}}',
    "absolute": b'{"weight_map": {"a": "/etc/passwd"}}',
    "below": b'{"weight_map": {"a": "x/model.safetensors"}}',
    "dots": b'{"weight_map": {"a": ".."}}',
    "nothing": b'{"weight_map": {"a": ""}}',
    "long": b'{"weight_map": {"a": "' + b"x" * 100_000 + b'"}}',
    "missing": b'{"weight_map": {"a": "other.safetensors"}}',
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_that_are_none(name, hf):
    (hf / "model.safetensors").rename(hf / "renamed.safetensors")
    (hf / "model.safetensors").with_name("other").mkdir()
    (hf / INDEX).write_bytes(INDEXES[name])
    refused(open_hf_folder, hf)


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


HEADERS = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": header(b""),
    "length beyond the file": header(b"{}", 1 << 20),
    "length of 2^63": header(b"{}", (1 << 63) - 1),
    "length of 2^64 - 1": header(b"{}", (1 << 64) - 1),
    "not JSON": header(b"not JSON"),
    "list": header(b"[]"),
    "deep": header(b'{"a":' + b"[" * 100_000),
    "no fields": header(b'{"a": {}}'),
    "numbers": header(b'{"a": 1}'),
    "other dtype": header(b'{"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 1]}}') + b"\0",
    "beyond": header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
    "overlapping": header(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    )
    + b"\0" * 4,
    "backwards": header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}') + b"\0" * 4,
    "negative": header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"\0" * 4,
    "too large a shape": header(b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 4]}}'),
    "a gap": header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}') + b"\0" * 8,
    "a long name": header(b'{"' + b"x" * 1_000_000 + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}')
    + b"\0" * 4,
    "many dimensions": header(
        b'{"a": {"dtype": "F32", "shape": [' + b",".join([b"1"] * 100_000) + b'], "data_offsets": [0, 4]}}'
    )
    + b"\0" * 4,
}


@pytest.mark.parametrize("name", HEADERS)
def test_safetensors_that_are_none(name, hf):
    (hf / "model.safetensors").write_bytes(HEADERS[name])
    refused(open_hf_folder, hf)


def test_a_folder_or_a_pipe_in_a_files_place(hf):
    (hf / "config.json").rename(hf / "kept")
    (hf / "config.json").mkdir()
    assert "no config.json" in refused(open_hf_folder, hf)
    (hf / "config.json").rmdir()
    (hf / "kept").rename(hf / "config.json")
    (hf / "model.safetensors").unlink()
    (hf / "model.safetensors").mkdir()
    assert "model.safetensors is not there" in refused(open_hf_folder, hf)


ARCHITECTURES = {
    "empty": {},
    "initializer_range 0": {"initializer_range": 0},
    "vocab_size text": {"vocab_size": "x"},
    "layers 10^9": {"num_hidden_layers": 10**9},
    "another family": {"model_type": "mistral"},
    "unknown key": {"surplus": 1},
    "rope_theta null": {"rope_theta": None},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_manifests_whose_architecture_is_out_of_bounds(name, hf, tmp_path):
    from megatron_octo.bridge.megatron_folder import open_megatron_folder

    import_checkpoint(hf, tmp_path / "m", Parallel())
    path = tmp_path / "m" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["architecture"] = manifest["architecture"] | ARCHITECTURES[name] if ARCHITECTURES[name] else {}
    path.write_text(json.dumps(manifest))
    vouch(tmp_path / "m")
    message = refused(open_megatron_folder, tmp_path / "m", error=CheckpointError)
    assert "manifest.json: architecture" in message


def test_nothing_is_written_for_what_is_refused(hf):
    (hf / "config.json").write_text(json.dumps(LLAMA | {"initializer_range": 0}))
    before = files_under(hf.parent)
    refused(import_checkpoint, hf, hf.parent / "m", Parallel())
    assert files_under(hf.parent) == before


COMPANIONS = (
    "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
    "vocab.json",
)  # fmt: skip
NO_OBJECTS = {
    "list": b"[]", "number": b"5", "text": b'"x"', "null": b"null", "empty": b"", "bytes": b"\xff\xfe\0\1",
    "cut": b'{"a": ', "deep": b'{"a": ' + b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_that_nobody_can_read_are_not_imported(name, hf):
    for content in NO_OBJECTS.values():
        (hf / name).write_bytes(content)
        before = files_under(hf.parent)
        assert name in refused(import_checkpoint, hf, hf.parent / "m", Parallel())
        assert files_under(hf.parent) == before


def test_companions_are_copied_as_they_are(hf):
    """transformers writes 10^30 where a length has no limit."""
    (hf / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    (hf / "special_tokens_map.json").write_text("{}")
    (hf / "generation_config.json").write_bytes(b'\xef\xbb\xbf{"temperature": 0.6}\n')
    import_checkpoint(hf, hf.parent / "m", Parallel())
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (hf.parent / "m" / "hf" / name).read_bytes() == (hf / name).read_bytes()


def test_a_base_whose_companions_nobody_can_read_is_refused_before_it_is_imported(hf, tmp_path):
    (hf / "generation_config.json").write_text("[]")
    shape = architecture_of(read_config(hf), "a folder").model_dump(mode="json")
    overrides = [f"model.base={hf}", "model.initialize=base", f"model.architecture={json.dumps(shape)}"]
    message = refused(check_base, load_recipe("tiny", overrides), RunFolder(tmp_path / "run"))
    assert "generation_config.json holds a list, not an object; copy it again" in message


def test_a_base_in_the_home_folder_of_nobody(tmp_path):
    recipe = load_recipe("tiny", ["model.base=~no-such-user/hf", "model.initialize=base"])
    message = refused(check_base, recipe, RunFolder(tmp_path / "run"))
    assert "model.base: ~no-such-user/hf: " in message and "write the whole path" in message


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["silu", "llama3", "default"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "a"]), below),
    max_leaves=6,
)
FUZZ = settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))


KEYS = (
    *LLAMA, "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "attention_bias", "num_labels",
    "use_sliding_window",
)  # fmt: skip


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.sampled_from([LLAMA, QWEN]))
def test_any_configuration_is_an_architecture_or_our_error(changes, base):
    with contextlib.suppress(ModelError):
        architecture_of(base | changes, "a folder")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_model("llama-3.2", tmp_path_factory.mktemp("fuzzed") / "hf")


@FUZZ
@given(st.one_of(st.binary(max_size=100), VALUES.map(lambda v: json.dumps({"weight_map": v}).encode())))
def test_any_bytes_are_an_index_or_our_error(small, data):
    with read_aside(small / "model.safetensors"):
        (small / INDEX).write_bytes(data)
        try:
            with contextlib.suppress(ModelError):
                open_hf_folder(small)
        finally:
            (small / INDEX).unlink()


@FUZZ
@given(st.data())
def test_any_bytes_are_safetensors_or_our_error(small, data):
    file = small / "model.safetensors"
    whole = file.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    change = data.draw(st.one_of(st.binary(max_size=60), st.tuples(st.integers(0, size - 1), st.binary(max_size=4))))
    altered = (
        change if isinstance(change, bytes) else whole[: change[0]] + change[1] + whole[change[0] + len(change[1]) :]
    )
    with read_aside(file):
        file.write_bytes(altered)
        with contextlib.suppress(ModelError):
            open_hf_folder(small)


@contextlib.contextmanager
def read_aside(file: Path):
    """Leave a file out of its place for a while."""
    aside = file.with_name("aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.replace(file)
