"""Weights that are no numbers, or that rounding makes infinite or zero: counted, named, refused unless allowed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.special_values import is_finite
from megatron_octo.cli import main
from megatron_octo.errors import CheckpointError, ModelError
from megatron_octo.recipe import Parallel
from tests.bridge.models import make_model, same_bits
from tests.support import files_under

DOWN, QUERY = "model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"


def altered(folder, change):
    """Alter a model's weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", [0, 1, 500, 1023, 1024])
def test_one_value_among_many_is_seen(dtype, value, place):
    """Wherever it lies in the vectors that the processor takes at a time, and in a view that is not in one piece."""
    tensor = torch.randn(1025).to(dtype)
    assert is_finite(tensor)
    tensor[place] = value
    assert not is_finite(tensor) and not is_finite(tensor.view(25, 41).t())


@pytest.mark.parametrize("layout", [Parallel(), Parallel(tensor=2, pipeline=2)], ids=["1x1", "2x2"])
def test_weights_that_are_nan_are_counted_and_refused(layout, tmp_path):
    def change(tensors):
        tensors[DOWN][3, 5:8] = torch.nan
        tensors[QUERY][-1, -1] = -torch.inf

    hf = altered(make_model("llama-3.2", tmp_path / "hf"), change)
    before = files_under(tmp_path)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(hf, tmp_path / "megatron", layout)
    assert f"4 weights are NaN or infinite, in {DOWN} (3), {QUERY} (1)" in str(caught.value)
    assert "--allow-nan" in str(caught.value) and files_under(tmp_path) == before
    manifest = import_checkpoint(hf, tmp_path / "megatron", layout, allow_nan=True)
    assert manifest.origin["weights_not_finite"] == 4
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    assert same_bits(hf, tmp_path / "back")


def test_the_command_refuses_them_too(tmp_path, capsys):
    hf = altered(make_model("llama-3.2", tmp_path / "hf"), lambda t: t[DOWN].fill_(torch.nan))
    assert main(["convert", "import", str(hf), str(tmp_path / "m")]) == 2
    assert "weights are NaN or infinite" in capsys.readouterr().err
    assert main(["convert", "import", str(hf), str(tmp_path / "m"), "--allow-nan"]) == 0
    assert "were taken as they are" in capsys.readouterr().out


@pytest.fixture
def wide(tmp_path):
    """Weights in fp32: twelve beyond float16's 65,504, and five below its 6e-8 that are not 0."""

    def change(tensors):
        tensors[DOWN][0, :12] = torch.tensor([65_520.0, -1e38, 7e4] * 4)
        tensors[DOWN][1, :3] = torch.tensor([65_519.0, torch.finfo(torch.float16).max, 0.0])  # these do not
        tensors[QUERY][0, :6] = torch.tensor([2.9e-8, -1e-9, 1e-30, 1e-40, -2e-8, 3.1e-8])  # the last one is rounded up

    hf = altered(make_model("qwen2.5-untied", tmp_path / "hf"), change)
    import_checkpoint(hf, tmp_path / "megatron", Parallel(tensor=2))
    return tmp_path / "megatron"


def test_an_export_that_rounds_to_infinity_or_zero_is_refused(wide, tmp_path):
    before = files_under(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(wide, tmp_path / "back", dtype=torch.float16)
    message = str(caught.value)
    assert "12 weights became infinite and 5 other than 0 became 0 (at worst up to 2.9e-08, in a" in message
    assert f"{DOWN} (12)" in message and f"{QUERY} (5)" in message
    assert "--allow-rounding-to-inf and --allow-rounding-to-zero" in message
    assert files_under(tmp_path) == before


@pytest.mark.parametrize(("allowed", "left"), [("inf", "zero"), ("zero", "inf")])
def test_each_is_allowed_by_its_own_flag(allowed, left, wide, tmp_path, capsys):
    words = ["convert", "export", str(wide), str(tmp_path / "back"), "--dtype", "float16"]
    assert main([*words, f"--allow-rounding-to-{allowed}"]) == 2
    told = capsys.readouterr().err
    assert f"give --allow-rounding-to-{left}" in told and f"--allow-rounding-to-{allowed}" not in told


def test_what_was_allowed_is_in_the_report_the_card_and_the_record(wide, tmp_path, capsys):
    flags = ["--allow-rounding-to-inf", "--allow-rounding-to-zero"]
    assert main(["convert", "export", str(wide), str(tmp_path / "back"), "--dtype", "float16", *flags]) == 0
    assert "12 finite weights infinite, and 5 others 0" in capsys.readouterr().out
    assert "12 weights became infinite and 5 other than 0 became 0" in (tmp_path / "back/README.md").read_text()
    record = json.loads((tmp_path / "back/octo_export.json").read_text())
    assert (record["rounded_to_inf"], record["rounded_to_zero"]) == (12, 5)


def test_bfloat16_has_the_range_of_float32(tmp_path):
    """But for the last 0.4% below its largest number, and the tail of subnormals."""
    ends = torch.tensor([1e38, -3.38e38, 1e-38, 1e-40, 3.4e38, 1e-45, 0.0])
    hf = altered(make_model("qwen2.5-untied", tmp_path / "hf"), lambda t: t[DOWN][0, :4].copy_(ends[:4]))
    import_checkpoint(hf, tmp_path / "m", Parallel())
    report = export_checkpoint(tmp_path / "m", tmp_path / "back", dtype=torch.bfloat16)
    assert (report.to_inf, report.to_zero) == (0, 0)
    altered(hf, lambda t: t[DOWN][0, :7].copy_(ends))
    import_checkpoint(hf, tmp_path / "m2", Parallel())
    with pytest.raises(CheckpointError, match="1 weights became infinite and 1 other than 0 became 0"):
        export_checkpoint(tmp_path / "m2", tmp_path / "back2", dtype=torch.bfloat16)


def test_a_loss_is_told_beside_its_tensor(tmp_path):
    """A stray weight of 1e-9 among others of 0.05 is nothing; a tensor of such weights is all there is of it."""

    def change(tensors):
        tensors[DOWN][0, 0] = 2e-8
        tensors[QUERY].normal_(std=1e-8)

    import_checkpoint(altered(make_model("qwen2.5-untied", tmp_path / "hf"), change), tmp_path / "m", Parallel())
    with pytest.raises(CheckpointError, match=r"became 0 \(at worst up to [23].*e-08, in a tensor of about 1e-08\)"):
        export_checkpoint(tmp_path / "m", tmp_path / "back", dtype=torch.float16)


def test_infinities_that_were_there_are_not_rounded_ones(tmp_path):
    hf = altered(make_model("qwen2.5-untied", tmp_path / "hf"), lambda t: t[DOWN][0, :2].fill_(torch.inf))
    import_checkpoint(hf, tmp_path / "m", Parallel(), allow_nan=True)
    report = export_checkpoint(tmp_path / "m", tmp_path / "back", dtype=torch.float16)
    assert (report.to_inf, report.to_zero) == (0, 0)


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "-inf", "1e-9", "1e300"])
def test_sizes_of_shards_that_cannot_be(wide, size, tmp_path, capsys):
    assert main(["convert", "export", str(wide), str(tmp_path / "back"), f"--shard-gb={size}"]) == 2
    assert "--shard-gb" in capsys.readouterr().err and not (tmp_path / "back").exists()
    with pytest.raises(ModelError, match="0 bytes"):
        export_checkpoint(wide, tmp_path / "back", shard_bytes=0)
    with pytest.raises(ModelError, match=r"torch\.int8"):
        export_checkpoint(wide, tmp_path / "back", dtype=torch.int8)


@pytest.mark.parametrize("option", ["--tensor-parallel=0", "--pipeline-parallel=-1", f"--tensor-parallel={10**40}"])
def test_layouts_that_cannot_be(option, tmp_path, capsys):
    hf = make_model("llama-3.2", tmp_path / "hf")
    assert main(["convert", "import", str(hf), str(tmp_path / "m"), option]) == 2
    told = capsys.readouterr().err
    assert "octo: " in told and "Traceback" not in told
