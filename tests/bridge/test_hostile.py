"""A checkpoint from elsewhere may hold a pickle that runs when it is read: on no road does it."""

import shutil

import pytest

from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.logits import compare_logits
from megatron_octo.cli import main
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Parallel
from tests.bridge.hostile import PLACES, plant
from tests.bridge.models import make_model
from tests.runtime.hostile import HOSTILE
from tests.support import MINI, octo


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A model and its checkpoint, which any test copies."""
    folder = tmp_path_factory.mktemp("converted")
    make_model("llama-3.2", folder / "hf")
    import_checkpoint(folder / "hf", folder / "megatron", Parallel())
    return folder


@pytest.fixture
def checkpoint(converted, tmp_path):
    shutil.copytree(converted / "megatron", tmp_path / "megatron")
    return tmp_path / "megatron"


@pytest.mark.parametrize("way", ["export", "export --config", "verify"])
@pytest.mark.parametrize("kind", ["os.system", "torch.load", "deep"])
def test_conversions_do_not_run_it(way, kind, checkpoint, converted, tmp_path, capsys):
    plant(checkpoint, "metadata", tmp_path / "marker", kind)
    if way == "export --config":
        (checkpoint / "manifest.json").unlink()
    words = {
        "export": ["export", checkpoint, tmp_path / "back"],
        "export --config": ["export", checkpoint, tmp_path / "back", "--config", converted / "hf"],
        "verify": ["verify", converted / "hf", checkpoint],
    }[way]
    assert main(["convert", *map(str, words)]) == 2
    assert not (tmp_path / "marker").exists()
    told = capsys.readouterr().err
    assert ".metadata: it names" in told and "do not use this checkpoint" in told


@pytest.mark.parametrize("kind", HOSTILE)
def test_weights_are_not_loaded_past_it(kind, checkpoint, converted, tmp_path):
    """As the comparison of logits loads them, and a stage that starts from a base."""
    plant(checkpoint, "metadata", tmp_path / "marker", kind)
    if kind == "os.system":
        with pytest.raises(CheckpointError, match=r"it names posix\.system"):
            compare_logits(converted / "hf", checkpoint)
        assert not (tmp_path / "marker").exists()
    from megatron_octo.bridge.megatron_folder import open_megatron_folder

    with pytest.raises(CheckpointError, match=r"\.metadata"):
        open_megatron_folder(checkpoint)
    assert not (tmp_path / "marker").exists()


def test_a_start_from_weights_reads_nothing_of_the_common_file(checkpoint, converted, tmp_path):
    """Megatron-LM keeps its options there, of classes that need not be installed."""
    plant(checkpoint, "common", tmp_path / "marker")
    assert compare_logits(converted / "hf", checkpoint).is_equal
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """The mini recipe's first stage: stopped in the middle, and done."""
    folders = {}
    for name, words in (("stopped", ["--stop-after-step", "4"]), ("done", [])):
        folders[name] = tmp_path_factory.mktemp("trained") / name
        shutil.copytree(prepared / "runs", folders[name] / "runs")
        octo("train", str(MINI), "stable", *words, cwd=folders[name])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", ["resume", "branch"])
def test_training_does_not_run_it(way, place, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # torch.load asks it where it is not told
    name, stage = ("stopped", "stable") if way == "resume" else ("done", "decay")
    shutil.copytree(trained[name], tmp_path / "run")
    (checkpoint,) = (tmp_path / "run/runs/mini/stages/stable/checkpoints").glob("step-*")
    plant(checkpoint, place, tmp_path / "marker")
    done = octo("train", str(MINI), stage, cwd=tmp_path / "run", check=False)
    assert not (tmp_path / "marker").exists()
    assert done.returncode == 2 and "posix.system" in done.stderr and "do not use this checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
