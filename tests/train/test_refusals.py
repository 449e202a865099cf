"""`octo train` refuses with the value, the limit and the way out, and starts and leaves nothing."""

import fcntl
import json
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from megatron_octo.cli import main
from tests.support import MINI, files_under, octo


@pytest.fixture(scope="module")
def begun(prepared, tmp_path_factory):
    """`stable` stopped after four steps, with a checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(prepared / "runs", folder / "runs")
    octo("train", str(MINI), "stable", "--stop-after-step", "4", cwd=folder)
    return folder


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run `octo train` in this process; return its message once nothing is found changed."""

    def run(folder, *arguments, starts=False):
        monkeypatch.chdir(folder)
        if not starts:
            monkeypatch.setattr("megatron_octo.train.run.run_module_as_ranks", _no_rank)
        before = files_under(folder)
        assert main(["train", str(MINI), *arguments]) == 2
        assert files_under(folder) == before
        return capsys.readouterr().err

    return run


def _no_rank(*_):
    raise AssertionError("a rank was started")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stabel"], ["no stage 'stabel'", "did you mean 'stable'?"]),
        (["decay"], ["starts from 'stable' at step 20", "no complete checkpoint", "octo train mini stable"]),
        (["stable", "-s", "train.precision=fp8"], ["train.precision = fp8", "Hopper", "train.precision=bf16"]),
        (
            ["stable", "-s", "parallel.context=2", "-s", "train.precision=bf16"],
            ["parallel.context = 2", "Transformer Engine", "set it to 1"],
        ),
        (
            ["stable", "-s", "parallel.data=3"],
            ["train.global_batch_size = 8", "micro_batch_size 2 x 3", "change one of the three"],
        ),
        (
            ["stable", "-s", "model.architecture.rope_scaling={rope_type: llama3, factor: 8, low_freq_factor: 2}"],
            ["low_freq_factor = 2", "computes with 1.0 only"],
        ),
    ],
)
def test_before_anything_is_trained(workplace, refused, arguments, expected):
    message = refused(workplace("fresh"), *arguments)
    for part in expected:
        assert part in message


def test_data_that_is_not_prepared(tmp_path, refused):
    message = refused(tmp_path, "stable")
    assert "manifest.json" in message and "octo data prepare" in message


def test_data_that_was_prepared_with_other_settings(workplace, refused):
    message = refused(workplace("fresh"), "stable", "-s", "data.heldout_problems=9")
    assert "prepared with other settings" in message and "octo data prepare" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.stable.mixture={web: 0.6, qa: 0.4}", "the share of web was 0.5, is 0.6"),
        ("stages.stable.tokens=20480", "samples was 160, is 320"),
        ("seed=8", "seed was 7, is 8"),
        ("train.sequence_length=32", "sequence_length was 64, is 32"),
    ],
)
def test_a_resume_on_another_order_of_data(begun, refused, override, expected):
    message = refused(begun, "stable", "-s", override)
    assert expected in message and "a resume would reorder it" in message and "--accept-changes" in message


def test_a_resume_on_changed_files(begun, refused, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    manifest = tmp_path / "runs" / "mini" / "data" / "web" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["train"]["files"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert "the files of web are not those that training began with" in refused(tmp_path, "stable")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate was 0.003, is 0.001"),
        ("train.optimizer.weight_decay=0", "train.optimizer.weight_decay was 0.1, is 0"),
    ],
)
def test_a_resume_with_other_settings(begun, refused, override, expected):
    message = refused(begun, "stable", "-s", override)
    assert expected in message and "began with other settings" in message and "--accept-changes" in message


def test_a_tensor_file_that_is_cut_short(begun, refused, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    file = next((tmp_path / "runs/mini/stages/stable/checkpoints/step-0000004").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:1000])
    message = refused(tmp_path, "stable")
    assert f"{file.name}: 1000 bytes" in message and "resume from the one before" in message


def test_a_stage_that_another_process_trains(begun, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    stage = tmp_path / "runs/mini/stages/stable"
    (stage / "running.json").write_text('{"pid": 1}')
    with open(stage / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told = octo("train", str(MINI), "stable", cwd=tmp_path, check=False)
    assert told.returncode == 2
    assert 'another process trains this stage: {"pid": 1}' in told.stderr
    assert (stage / "running.json").read_text() == '{"pid": 1}'
    assert not list(stage.glob("checkpoints/.step*"))


def test_a_writer_that_outlives_its_killed_training_is_waited_for(begun, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    stage = tmp_path / "runs/mini/stages/stable"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claim = {"pid": ended.pid, "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()}
    (stage / "running.json").write_text(json.dumps(claim))
    with open(stage / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = subprocess.Popen(["sleep", "30"], pass_fds=[held.fileno()])  # it holds the lock as a fork would
    told = octo("train", str(MINI), "stable", "--stop-after-step", "5", cwd=tmp_path)
    assert writer.wait() == 0
    assert "resumes after step 4" in told.stdout + told.stderr


def test_a_resume_with_another_model(begun, refused):
    message = refused(begun, "stable", "-s", "model.architecture.intermediate_size=64")
    assert "intermediate_size is 64, not 128 there" in message and "use another run folder" in message


def test_a_resume_beyond_the_budget(begun, refused):
    message = refused(begun, "stable", "-s", "stages.stable.tokens=1024")
    assert "beyond the 2 steps" in message and "raise the budget" in message


def test_a_resume_at_a_layout_that_the_checkpoint_cannot_take(begun, refused, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    manifest = tmp_path / "runs/mini/stages/stable/checkpoints/step-0000004/manifest.json"
    content = json.loads(manifest.read_text())
    content |= {"resharding": "data_parallel", "format": 1, "digest": None}
    manifest.write_text(json.dumps(content))
    message = refused(tmp_path, "stable", "-s", "parallel.tensor=2")
    assert "tensor 1 -> 2" in message and "resume under the old layout" in message


def test_a_checkpoint_manifest_that_is_damaged(begun, refused, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    (tmp_path / "runs/mini/stages/stable/checkpoints/step-0000004/manifest.json").write_text("{}")
    assert "not a usable checkpoint manifest" in refused(tmp_path, "stable")


def test_a_changed_order_is_accepted_when_told_so(begun, tmp_path):
    shutil.copytree(begun / "runs", tmp_path / "runs")
    arguments = ["-s", "stages.stable.mixture={web: 0.6, qa: 0.4}", "--accept-changes", "--stop-after-step", "5"]
    done = octo("train", str(MINI), "stable", *arguments, cwd=tmp_path)
    assert "accepted a change: the share of web was 0.5, is 0.6" in done.stdout
    assert "resumes after step 4" in done.stdout
    changes = json.loads((tmp_path / "runs/mini/stages/stable/lineage.json").read_text())["changes"]
    assert changes[0]["after_step"] == 4 and "the share of web was 0.5, is 0.6" in changes[0]["changed"]
    again = octo("train", str(MINI), "stable", *arguments[:2], "--stop-after-step", "6", cwd=tmp_path)
    assert "resumes after step 5" in again.stdout  # the changed recipe is the stage's own now


def test_a_loss_that_is_no_number_names_the_batch_and_saves_nothing(begun, tmp_path):
    """A learning rate that destroys the weights: the next loss is not finite."""
    shutil.copytree(begun / "runs", tmp_path / "runs")
    arguments = ["-s", "train.learning_rate=1e30", "-s", "train.optimizer.clip_grad=0", "--accept-changes"]
    done = octo("train", str(MINI), "stable", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "at step 6, in samples 40-47 (sources qa, web); nothing was saved of this step" in done.stderr
    steps = sorted(p.name for p in (tmp_path / "runs/mini/stages/stable/checkpoints").glob("step-*"))
    assert steps == ["step-0000004"]
