"""There and back through every layout: the same bits, and configurations that say the same."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.hf_folder import INDEX, open_hf_folder
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.megatron_folder import open_megatron_folder
from megatron_octo.bridge.torch_dist_reader import TorchDistReader
from megatron_octo.bridge.verify import verify_tensors
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.checkpoints import verify_checkpoint
from tests.bridge.models import CASES, make_model, same_bits, tensors_of

LAYOUTS = {
    "tp1": Parallel(),
    "tp2pp2": Parallel(tensor=2, pipeline=2),
    "tp4": Parallel(tensor=4),  # more tensor ranks than key-value heads
    "pp2vpp2": Parallel(pipeline=2, virtual_pipeline=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_bits_come_back_through_a_layout(case, layout, tmp_path):
    """Out of the layout, and once more through one rank."""
    hf = make_model(case, tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "megatron", LAYOUTS[layout])
    verify_checkpoint(tmp_path / "megatron")
    report = export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    assert report.tensors == len(open_hf_folder(hf).tensors) and not report.different and report.rounded == 0
    assert same_bits(hf, tmp_path / "back")
    import_checkpoint(tmp_path / "back", tmp_path / "again", Parallel())
    export_checkpoint(tmp_path / "again", tmp_path / "twice")
    assert same_bits(hf, tmp_path / "twice")


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_comes_back_as_transformers_reads_it(case, tmp_path):
    hf = make_model(case, tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2))
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    before, after = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("hf", "back"))
    assert {k: v for k, v in before.items() if k != "_name_or_path"} | {"head_dim": after["head_dim"]} == {
        k: v for k, v in after.items() if k != "_name_or_path"
    }
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    factor = {"llama-3.2": 32.0, "llama-3.2-old-spelling": 32.0, "llama-3.1": 8.0}.get(case)
    assert "rope_parameters" not in written  # transformers 4 reads the old spelling alone, and 5 both
    assert (written["rope_scaling"] or {}).get("factor") == factor and written["rope_theta"] >= 10000.0
    assert written["torch_dtype"] == str(CASES[case][2]).removeprefix("torch.")
    assert written["tie_word_embeddings"] == CASES[case][1].get("tie_word_embeddings", False)
    generation = "generation_config.json"
    assert (tmp_path / "back" / generation).read_text() == (hf / generation).read_text()


def test_sharded_in_and_sharded_out(tmp_path):
    """Shards and their index in; smaller shards out, which the safetensors library reads to the same tensors."""
    hf = make_model("llama-3.1", tmp_path / "hf", shard="150KB")
    assert len(list(hf.glob("*.safetensors"))) > 2
    import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2, pipeline=2))
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", shard_bytes=60_000)
    shards = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(shards) > 4
    read = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = {name: tensor for shard in hf.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read.values())


def test_a_single_file_goes_before_an_index_beside_it(tmp_path):
    """As in transformers: an index left from an older, sharded copy says nothing."""
    hf = make_model("llama-3.2", tmp_path / "hf")
    alone = open_hf_folder(hf)
    (hf / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "gone.safetensors"}}))
    assert open_hf_folder(hf) == alone


def test_every_bit_pattern_comes_back(tmp_path):
    """Infinities, negative zeros and every NaN: conversions move bits and compute nothing."""
    hf = make_model("llama-3.2", tmp_path / "hf")
    file = hf / "model.safetensors"
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[start:] = torch.randint(256, (len(raw) - start,), dtype=torch.uint8).numpy().tobytes()
    file.write_bytes(raw)
    import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2, pipeline=2), allow_nan=True)
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(hf, tmp_path / "back")


def test_the_files_of_a_layout_hold_what_its_ranks_read(tmp_path):
    """Pipeline rank 1 of 2 is files 2 and 3 at tensor 2, and has neither the embedding nor layers 0 and 1."""
    import_checkpoint(make_model("llama-3.1", tmp_path / "hf"), tmp_path / "m", Parallel(tensor=2, pipeline=2))
    metadata = TorchDistReader(tmp_path / "m")._metadata
    where = {}
    for index, stored in metadata.storage_data.items():
        where.setdefault(stored.relative_path, set()).add((index.fqn, tuple(index.offset)))
    assert sorted(where) == [f"__{rank}_0.distcp" for rank in range(4)]
    held = where["__2_0.distcp"] | where["__3_0.distcp"]
    assert {offset[0] for key, offset in held if key.startswith("decoder.layers.")} == {2, 3}
    assert {key for key, _ in held if not key.startswith("decoder.layers.")} == {
        "decoder.final_layernorm.weight", "output_layer.weight",
    }  # fmt: skip


def test_an_export_in_another_dtype_is_rounded_once(tmp_path):
    hf = make_model("qwen2.5-untied", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "m", Parallel())
    report = export_checkpoint(tmp_path / "m", tmp_path / "back", dtype=torch.bfloat16)
    assert report.rounded == report.tensors
    before, after = tensors_of(hf), tensors_of(tmp_path / "back")
    for name, bits in before.items():
        assert torch.equal(bits.view(torch.float32).bfloat16(), after[name].view(torch.bfloat16)), name
    assert json.loads((tmp_path / "back/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_verification_names_the_tensor_that_differs(tmp_path):
    hf = make_model("llama-3.2", tmp_path / "hf")
    import_checkpoint(hf, tmp_path / "m", Parallel(tensor=2))
    file = hf / "model.safetensors"
    raw = bytearray(file.read_bytes())
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    name = "model.layers.2.self_attn.k_proj.weight"
    raw[8 + int.from_bytes(raw[:8], "little") + header[name]["data_offsets"][0]] ^= 1  # one bit
    file.write_bytes(raw)
    report = verify_tensors(open_hf_folder(hf), open_megatron_folder(tmp_path / "m"))
    assert report.different == (name,) and report.tensors == len(header) - ("__metadata__" in header)


def test_norms_in_fp32_beside_weights_in_bf16_keep_their_bits(tmp_path):
    hf = make_model("llama-3.2", tmp_path / "hf")
    tensors = load_file(hf / "model.safetensors")
    tensors = {name: x.float() + 1e-6 if "norm" in name else x for name, x in tensors.items()}
    save_file(tensors, hf / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint(hf, tmp_path / "m", Parallel(tensor=2))
    report = export_checkpoint(tmp_path / "m", tmp_path / "back")
    assert report.rounded == 0 and same_bits(hf, tmp_path / "back")
    rounded = export_checkpoint(tmp_path / "m", tmp_path / "rounded", dtype=torch.bfloat16)
    assert rounded.rounded == 9  # two norms a layer and the last one
    assert "bit for bit, after rounding to bfloat16" in (tmp_path / "rounded" / "README.md").read_text()


def test_an_export_can_take_the_place_of_an_older_one(tmp_path):
    first, second = (
        make_model("llama-3.1", tmp_path / name, **c) for name, c in (("a", {}), ("b", {"vocab_size": 99}))
    )
    for hf in (first, second):
        import_checkpoint(hf, tmp_path / f"m-{hf.name}", Parallel())
    export_checkpoint(tmp_path / "m-a", tmp_path / "back")
    export_checkpoint(tmp_path / "m-b", tmp_path / "back", replace=True)
    assert same_bits(second, tmp_path / "back") and not list(tmp_path.glob(".*"))


def test_a_configuration_given_by_hand_brings_its_tokenizer(tmp_path):
    """A checkpoint of Megatron-LM has neither configuration nor tokenizer."""
    hf = make_model("llama-3.2", tmp_path / "hf")
    tokenizer = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
    (hf / "tokenizer.json").write_text(tokenizer)
    import_checkpoint(hf, tmp_path / "m", Parallel())
    (tmp_path / "m" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "m" / "hf")
    export_checkpoint(tmp_path / "m", tmp_path / "back", config=hf)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == tokenizer
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["eos_token_id"] == json.loads((hf / "config.json").read_text())["eos_token_id"]
