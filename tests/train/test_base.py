"""A stage that starts from published weights: imported once, the same model at every layout, refused where it is not
the recipe's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.torch_dist_reader import TorchDistReader
from megatron_octo.cli import main
from megatron_octo.recipe import load_recipe
from megatron_octo.runtime.run_folder import RunFolder
from tests.bridge.models import change_config
from tests.support import MINI, lines, octo

BASE = ["-s", "model.initialize=base", "-s", "model.base=base-model"]


@pytest.fixture(scope="module")
def based(prepared, tmp_path_factory):
    """A run folder with data, and a base model of the recipe's shape beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("based")
    shutil.copytree(prepared / "runs", folder / "runs")
    shape = load_recipe(str(MINI)).model.architecture.model_dump(exclude={"attention_bias", "rope_scaling", "head_dim"})
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / "base-model")
    return folder


@pytest.fixture(scope="module")
def trained(based, tmp_path_factory):
    """Three steps from it, as one process and at tensor 2 x pipeline 2."""
    made = {}
    for layout in ("1x1", "2x2"):
        made[layout] = tmp_path_factory.mktemp("from-base") / "run"
        shutil.copytree(based, made[layout])
        tensor, pipeline = layout.split("x")
        layout_arguments = ["-s", f"parallel.tensor={tensor}", "-s", f"parallel.pipeline={pipeline}"]
        octo("train", str(MINI), "stable", *BASE, *layout_arguments, "--stop-after-step", "3", cwd=made[layout])
    return made


def test_every_layout_starts_from_the_same_model(trained):
    losses = {
        layout: [record["loss"] for record in lines(folder / "runs/mini/stages/stable/metrics.jsonl")]
        for layout, folder in trained.items()
    }
    assert len(losses["1x1"]) == 3 and losses["2x2"] == pytest.approx(losses["1x1"], rel=2e-5)


def test_the_first_validation_is_what_transformers_computes(trained):
    """The loss on a source before the first step, against the base model as transformers loads it."""
    from megatron_octo.data.datasets import build_validation
    from megatron_octo.data.mixture import read_mixture_sources, read_token_ids

    folder = trained["1x1"]
    recipe = load_recipe(str(MINI))
    run = RunFolder(folder / "runs/mini")
    before = {r["source"]: r["loss"] for r in lines(run.validation("stable")) if r["step"] == 0}
    sources = read_mixture_sources(recipe, run, "stable").validation
    datasets = build_validation(
        sources,
        samples=8,
        sequence_length=64,
        seed=recipe.seed,
        tokens=read_token_ids(recipe, run),
        cache=folder / "cache",
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "base-model")
    for source, samples in datasets.items():
        tokens = torch.stack([samples[i]["tokens"] for i in range(8)])
        labels = torch.stack([samples[i]["labels"] for i in range(8)])
        with torch.no_grad():
            logits = model(tokens).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert before[source] == pytest.approx(float(expected), rel=1e-5)


def test_the_base_is_imported_once_and_named_in_the_lineage(trained):
    folder = trained["2x2"]
    before = (folder / "runs/mini/base/manifest.json").stat().st_mtime_ns
    manifest = json.loads((folder / "runs/mini/base/manifest.json").read_text())
    assert manifest["origin"]["name"] == "base-model" and manifest["layout"]["tensor"] == 2
    lineage = json.loads((folder / "runs/mini/stages/stable/lineage.json").read_text())
    assert lineage["base"] == "base-model" and len(lineage["base_manifest_sha256"]) == 64
    layout = ["-s", "parallel.tensor=2", "-s", "parallel.pipeline=2"]
    again = octo("train", str(MINI), "stable", *BASE, *layout, "--stop-after-step", "4", cwd=folder)
    assert "resumes after step 3" in again.stdout
    assert (folder / "runs/mini/base/manifest.json").stat().st_mtime_ns == before


def test_a_padded_vocabulary_is_exported_without_its_padding(trained, tmp_path):
    """Saved by Megatron at tensor 2: 262 rows for 261 words. The card tells the lineage."""
    exports = {}
    for layout, folder in trained.items():
        checkpoint = folder / "runs/mini/stages/stable/checkpoints/step-0000003"
        export_checkpoint(checkpoint, tmp_path / layout)
        exports[layout] = load_file(tmp_path / layout / "model.safetensors")
    name = "model.embed_tokens.weight"
    rows = TorchDistReader(trained["2x2"] / "runs/mini/stages/stable/checkpoints/step-0000003").size(
        "embedding.word_embeddings.weight"
    )
    assert rows[0] == 262 and exports["2x2"][name].shape == exports["1x1"][name].shape == (261, 64)
    for tensor in exports["1x1"]:
        torch.testing.assert_close(exports["2x2"][tensor], exports["1x1"][tensor], rtol=1e-3, atol=1e-5)
    card = (tmp_path / "2x2" / "README.md").read_text()
    assert "base_model: base-model" in card and "| stable | the start | 1.536K | 0.003 | web 0.5, qa 0.5 |" in card
    assert "| web | builtin: web |" in card and "1,536 tokens in all, at step 3 of `stable`" in card


def refused(folder, capsys, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("megatron_octo.train.run.run_module_as_ranks", lambda *_: pytest.fail("a rank was started"))
    assert main(["train", str(MINI), "stable", *BASE, *arguments]) == 2
    assert not (folder / "runs/mini/base").exists() and not (folder / "runs/mini/stages").exists()
    return capsys.readouterr().err


def test_a_base_of_another_shape(based, tmp_path, capsys, monkeypatch):
    shutil.copytree(based, tmp_path / "x")
    message = refused(tmp_path / "x", capsys, monkeypatch, "-s", "model.architecture.intermediate_size=96")
    assert "model.base = 'base-model' is not of model.architecture: intermediate_size is 96, not 128" in message
    change_config(tmp_path / "x" / "base-model", rms_norm_eps=1e-6)
    message = refused(tmp_path / "x", capsys, monkeypatch)
    assert "rms_norm_eps is 1e-05, not 1e-06" in message and "name the right base" in message


def test_a_base_that_is_not_there(based, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(based, capsys, monkeypatch, "-s", "model.base=nobody/nothing")
    assert "model.base = 'nobody/nothing': neither a folder nor a model that the hub provides" in message
    assert "HF_TOKEN" in message and "model.initialize=random" in message


def test_a_run_whose_base_is_another(trained, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained["1x1"], folder)
    shutil.rmtree(folder / "runs/mini/stages")
    shutil.copytree(folder / "base-model", folder / "other-model")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("megatron_octo.train.run.run_module_as_ranks", lambda *_: pytest.fail("a rank was started"))
    assert main(["train", str(MINI), "stable", *BASE, "-s", "model.base=other-model"]) == 2
    assert "imported from base-model" in capsys.readouterr().err
