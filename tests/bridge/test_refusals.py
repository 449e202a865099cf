"""A model that cannot be converted is refused with its reason, and nothing is left behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.megatron_folder import is_padded
from megatron_octo.errors import CheckpointError, ModelError, RuntimeSetupError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime import atomic_folder
from tests.bridge.hostile import vouch
from tests.bridge.models import change_config, llama3_rope, make_model
from tests.support import files_under


@pytest.fixture
def hf(tmp_path):
    return make_model("llama-3.2", tmp_path / "hf")


def refused_import(hf, error, layout=None):
    """The message of an import that is refused and leaves all as it was."""
    before = files_under(hf.parent)
    with pytest.raises(error) as caught:
        import_checkpoint(hf, hf.parent / "megatron", layout or Parallel())
    assert files_under(hf.parent) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mistral"}, ["model_type 'mistral' has no weight map", "llama, qwen2", "families.py"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, ["rope_type = 'yarn'"]),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, ["rope_type = 'linear'"]),
        (
            {"rope_parameters": llama3_rope(8.0) | {"low_freq_factor": 2.0}},
            ["low_freq_factor = 2.0", "computes with 1.0 only"],
        ),
        (
            {"rope_parameters": llama3_rope(8.0) | {"original_max_position_embeddings": 4096}},
            ["original_max_position_embeddings = 4096", "computes with 8192 only"],
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            ["partial_rotary_factor = 0.5"],
        ),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["transformers cannot read its config"]),
        ({"hidden_act": "gelu"}, ["hidden_act = 'gelu'", "silu"]),
        ({"attention_bias": True}, ["attention_bias = True", "bias on the output projection"]),
        ({"mlp_bias": True}, ["mlp_bias = True", "biases in the MLP"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "dequantize"]),
        ({"num_hidden_layers": 5}, ["model.layers.4.mlp.down_proj.weight: missing, of shape [64, 96]"]),
        ({"num_hidden_layers": 3}, ["model.layers.3.mlp.down_proj.weight: surplus"]),
        ({"intermediate_size": 80}, ["model.layers.0.mlp.gate_proj.weight: of shape [96, 64], not [80, 64]"]),
        ({"tie_word_embeddings": False}, ["lm_head.weight: missing, of shape [261, 64]"]),
    ],
)
def test_a_configuration_that_cannot_be(hf, changes, expected):
    message = refused_import(change_config(hf, **changes), ModelError)
    assert str(hf) in message or "model.architecture" in message
    for part in expected:
        assert part in message


def test_attention_with_a_sliding_window(tmp_path):
    hf = change_config(make_model("qwen2.5-tied", tmp_path / "hf"), use_sliding_window=True, sliding_window=128)
    assert "use_sliding_window = True" in refused_import(hf, ModelError)


def test_tensors_that_are_missing_and_surplus_by_name(hf):
    tensors = load_file(hf / "model.safetensors")
    tensors["model.layers.0.self_attn.q_norm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    message = refused_import(hf, ModelError)
    assert "model.norm.weight: missing, of shape [64]" in message
    assert "model.layers.0.self_attn.q_norm.weight: surplus, of shape [64]" in message


def test_layers_in_different_dtypes(hf):
    """Megatron stacks them under one, so that one of them would be rounded and nothing would say so."""
    tensors = load_file(hf / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].float()}, hf / "model.safetensors", metadata={"format": "pt"})
    message = refused_import(hf, ModelError)
    assert f"{name}: torch.float32, but torch.bfloat16 in other layers or parts" in message


def test_a_tensor_that_two_shards_hold(tmp_path):
    hf = make_model("llama-3.1", tmp_path / "hf", shard="150KB")
    first, second = sorted(hf.glob("*.safetensors"))[:2]
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file(load_file(second) | {name: tensors[name]}, second, metadata={"format": "pt"})
    message = refused_import(hf, ModelError)
    assert f"{name} is in {first.name} and in {second.name}" in message


def test_an_output_weight_that_is_not_the_embedding_of_a_tied_model(hf):
    """One that is the same is a copy, and harmless."""
    tensors = load_file(hf / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": copy}, hf / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint(hf, hf.parent / "with-a-copy", Parallel())
    copy[0, 0] += 1
    save_file(tensors | {"lm_head.weight": copy}, hf / "model.safetensors", metadata={"format": "pt"})
    message = refused_import(hf, ModelError)
    assert (
        "tie_word_embeddings is true" in message and "lm_head.weight differs from model.embed_tokens.weight" in message
    )


def test_weights_that_are_quantized(hf):
    tensors = load_file(hf / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    message = refused_import(hf, ModelError)
    assert "model.norm.weight is of dtype I8" in message and "dequantize" in message


def test_a_file_that_is_cut_short_or_gone(hf):
    file = hf / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a complete safetensors file" in refused_import(hf, ModelError)
    file.rename(hf / "pytorch_model.bin")
    assert "convert its .bin files to safetensors first" in refused_import(hf, ModelError)
    (hf / "config.json").unlink()
    assert "no config.json" in refused_import(hf, ModelError)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Parallel(pipeline=3), "pipeline x virtual_pipeline = 3 does not divide num_hidden_layers 4"),
        (Parallel(tensor=3), "does not divide num_attention_heads 4"),
        (Parallel(virtual_pipeline=2), "interleaving needs pipeline"),
    ],
)
def test_a_layout_that_cannot_hold_the_model(hf, layout, expected):
    assert expected in refused_import(hf, ModelError, layout)


def test_a_target_that_holds_something_else(hf, tmp_path):
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "thesis.txt").write_text("mine")
    message = refused_import(hf, RuntimeSetupError)
    assert "holds something already (thesis.txt)" in message and "give another name" in message
    shutil.rmtree(tmp_path / "megatron")
    (tmp_path / "megatron").write_text("a file")
    assert "this is no folder" in refused_import(hf, RuntimeSetupError)


def test_too_little_disk(hf, tmp_path, monkeypatch):
    import_checkpoint(hf, tmp_path / "m", Parallel())
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(atomic_folder.shutil, "disk_usage", lambda _: usage)
    message = refused_import(hf, RuntimeSetupError)
    assert "needs 0.07 GB" in message and "has 0.00 GB free" in message and "make room" in message
    before = files_under(tmp_path)
    with pytest.raises(RuntimeSetupError, match="make room"):
        export_checkpoint(tmp_path / "m", tmp_path / "back")
    assert files_under(tmp_path) == before


@pytest.fixture
def megatron(hf, tmp_path):
    import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2))
    return tmp_path / "megatron"


def refused_export(megatron, error, **arguments):
    before = files_under(megatron.parent)
    with pytest.raises(error) as caught:
        export_checkpoint(megatron, megatron.parent / "back", **arguments)
    assert files_under(megatron.parent) == before
    return str(caught.value)


def test_a_checkpoint_that_is_damaged_or_none(megatron, tmp_path):
    assert "no .metadata, so it is not a torch_dist checkpoint" in refused_export(tmp_path / "hf", CheckpointError)
    file = megatron / "__1_0.distcp"
    whole = file.read_bytes()
    altered = bytearray(whole)
    altered[-2000] ^= 1
    file.write_bytes(altered)
    message = refused_export(megatron, CheckpointError)
    assert "__1_0.distcp: SHA-256" in message
    # converting stumbles over this one before it is hashed, and what is said is still that it is damaged
    file.write_bytes(b"\0" * 64 + whole[64:])
    message = refused_export(megatron, CheckpointError)
    assert "__1_0.distcp: SHA-256" in message
    file.write_bytes(whole[:-1])
    message = refused_export(megatron, CheckpointError)
    assert "__1_0.distcp" in message and "restore it from a copy" in message


def test_a_checkpoint_of_another_architecture(megatron):
    manifest = json.loads((megatron / "manifest.json").read_text())
    manifest["architecture"] |= {"model_type": "qwen2", "attention_bias": True, "intermediate_size": 80}
    (megatron / "manifest.json").write_text(json.dumps(manifest))
    vouch(megatron)
    message = refused_export(megatron, CheckpointError)
    assert "decoder.layers.self_attention.linear_qkv.bias: missing" in message
    assert "decoder.layers.mlp.linear_fc1.weight: of shape [4, 192, 64], not [4, 160, 64]" in message


def test_a_checkpoint_that_does_not_say_what_it_is(megatron, tmp_path):
    """As Megatron-LM leaves them; with a configuration it is read all the same."""
    (megatron / "manifest.json").unlink()
    assert "pass --config" in refused_export(megatron, CheckpointError)
    export_checkpoint(megatron, tmp_path / "told", config=tmp_path / "hf")


def test_a_tokenizer_folder_without_one(megatron, tmp_path):
    assert "no tokenizer.json" in refused_export(megatron, ModelError, tokenizer=tmp_path)


def test_an_export_that_reads_back_differently_is_not_kept(megatron, monkeypatch):
    """A disk that lies: one bit of one tensor comes back changed."""
    from megatron_octo.bridge.hf_folder import HfFolder

    read = HfFolder.tensor

    def lying(self, name):
        tensor = read(self, name).clone()
        if name == "model.norm.weight":
            tensor.view(torch.uint8)[0] ^= 1
        return tensor

    monkeypatch.setattr(HfFolder, "tensor", lying)
    message = refused_export(megatron, CheckpointError)
    assert "1 tensors read back differ" in message and "model.norm.weight" in message


def test_a_target_that_is_created_meanwhile_is_kept(megatron, tmp_path, monkeypatch):
    from megatron_octo.bridge import export_hf

    def meanwhile(*arguments):
        (tmp_path / "back").mkdir()
        (tmp_path / "back" / "thesis.txt").write_text("mine")
        return verify(*arguments)

    verify = export_hf.verify_tensors
    monkeypatch.setattr(export_hf, "verify_tensors", meanwhile)
    with pytest.raises(RuntimeSetupError, match="something was put there meanwhile"):
        export_checkpoint(megatron, tmp_path / "back")
    assert files_under(tmp_path / "back") == {"thesis.txt"} and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("rows", "vocabulary", "fits"),
    [
        (262, 261, True),
        (264, 261, True),
        (384, 261, True),
        (128_512, 128_256, True),
        (261, 200, False),
        (152, 100, False),
    ],
)
def test_a_padded_vocabulary_is_one_that_megatron_pads(rows, vocabulary, fits):
    assert is_padded(rows, vocabulary) == fits
