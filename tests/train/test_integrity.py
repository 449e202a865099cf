"""Nothing is trained on that is not what was recorded: checkpoints, data, index files, manifests, records of steps."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_octo.cli import main
from megatron_octo.runtime.checkpoints import MANIFEST
from tests.support import MINI, lines, octo

STAGE = Path("runs/mini/stages/stable")


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """`stable` trained to its end, with a checkpoint at step 16 too; `decay` stopped after four steps."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared / "runs", folder / "runs")
    octo("train", str(MINI), "stable", "-s", "train.checkpointing={every_steps: 8, keep: 5}", cwd=folder)
    octo("train", str(MINI), "decay", "--stop-after-step", "4", cwd=folder)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained / "runs", tmp_path / "runs")
    return tmp_path


def unfinished(folder):
    """`stable` as if it had been ended after step 16."""
    (folder / STAGE / "result.json").unlink()
    shutil.rmtree(folder / STAGE / "checkpoints/step-0000020")
    return folder


def flip(path, at=None):
    """One bit of a file, its size unchanged."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def train(folder, stage, *arguments, status=0):
    told = octo("train", str(MINI), stage, *arguments, cwd=folder, check=False)
    assert told.returncode == status, told.stdout + told.stderr
    assert "Traceback" not in told.stderr
    return told.stdout + told.stderr


@pytest.fixture
def refused(monkeypatch, capsys):
    """The message of `octo train`, which refuses before it starts a rank."""

    def run(folder, stage):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("megatron_octo.train.run.run_module_as_ranks", lambda *_: pytest.fail("a rank was started"))
        assert main(["train", str(MINI), stage]) == 2
        return capsys.readouterr().err

    return run


def resume(folder, status=0):
    return train(folder, "stable", "-s", "train.checkpointing={every_steps: 8, keep: 5}", status=status)


def shard(folder, step):
    return max((folder / f"{STAGE}/checkpoints/step-{step:07d}").glob("*.distcp"), key=lambda path: path.stat().st_size)


def test_a_resume_from_a_flipped_bit(copy):
    flip(shard(unfinished(copy), 16))
    said = resume(copy, status=2)
    assert "damaged files, which would be trained on" in said and ".distcp: SHA-256" in said
    assert "remove its folder to resume from the one before" in said
    shutil.rmtree(copy / STAGE / "checkpoints/step-0000016")
    assert "resumes after step 8" in resume(copy)


def test_a_branch_from_a_flipped_bit(copy):
    shutil.rmtree(copy / "runs/mini/stages/decay")
    flip(shard(copy, 20))
    assert ".distcp: SHA-256" in train(copy, "decay", status=2)


def test_a_file_that_no_manifest_lists(copy):
    (unfinished(copy) / STAGE / "checkpoints/step-0000016/__9_9.distcp").write_bytes(b"x")
    assert "__9_9.distcp is not in its manifest" in resume(copy, status=2)


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "validation.bin"])
def test_prepared_data_with_a_flipped_bit(copy, name):
    flip(copy / f"runs/mini/data/qa/{name}")
    said = train(copy, "decay", status=2)
    assert f"qa/{name}: SHA-256" in said and "octo data prepare mini" in said


def test_an_index_file_with_a_flipped_bit_is_made_again(copy):
    shutil.rmtree(copy / STAGE / "cache")
    expected = [record["loss"] for record in lines(copy / STAGE / "metrics.jsonl")]
    octo("train", str(MINI), "stable", "--stop-after-step", "18", cwd=unfinished(copy))
    indices = sorted((copy / STAGE / "cache").rglob("*shuffle_index.npy"), key=lambda path: path.stat().st_size)
    before = indices[-1].read_bytes()
    flip(indices[-1], at=-1)
    assert "index files damaged or not recorded; they are made again" in resume(copy)
    assert indices[-1].read_bytes() == before
    assert [record["loss"] for record in lines(copy / STAGE / "metrics.jsonl")] == expected


@pytest.mark.parametrize("step", [12, 17])
@pytest.mark.parametrize("format", [1, 2])
def test_a_manifest_of_another_step_than_its_folder(copy, refused, step, format):
    path = unfinished(copy) / STAGE / "checkpoints/step-0000016" / MANIFEST
    content = json.loads(path.read_text()) | {"step": step, "format": format}
    path.write_text(json.dumps(content))
    said = refused(copy, "stable")
    assert (f"of step {step}, in a folder of step 16" if format == 1 else "altered since it was written") in said


@pytest.mark.parametrize(("what", "to"), [("stage", "decay"), ("recipe", "other")])
def test_a_checkpoint_that_was_put_elsewhere(copy, refused, what, to):
    path = unfinished(copy) / STAGE / "checkpoints/step-0000016" / MANIFEST
    content = json.loads(path.read_text()) | {what: to, "format": 1, "digest": None}
    path.write_text(json.dumps(content))
    assert f"its manifest is of {what} {to!r}" in refused(copy, "stable")


def test_a_parent_that_was_trained_again(copy, refused):
    path = copy / STAGE / "checkpoints/step-0000020" / MANIFEST
    content = json.loads(path.read_text()) | {"wall_seconds": 1.0, "format": 1, "digest": None}
    path.write_text(json.dumps(content))
    assert "branched off a checkpoint of 'stable' that is not there" in refused(copy, "decay")


@pytest.mark.parametrize("name", ["lineage.json", "result.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 1}', "\x00\xff"])
def test_records_of_a_stage_that_are_damaged(copy, refused, name, text):
    (copy / STAGE / name).write_text(text)
    said = refused(copy, "stable")
    assert name in said and ("restore it from a copy" in said or "run the same command again" in said)


def test_metrics_that_are_torn_or_gone(copy):
    """The good lines stay, what is lost is named, and the stage goes on to the same loss."""
    metrics = unfinished(copy) / STAGE / "metrics.jsonl"
    expected = lines(metrics)
    kept = metrics.read_text().splitlines()
    kept[4] = kept[4][:20]  # a line torn in the middle
    del kept[8:10]  # two that are gone
    metrics.write_text("\n".join(kept) + "\n")
    said = resume(copy)
    assert "1 damaged lines dropped" in said
    assert "metrics.jsonl has no record of steps 5, 9-10, which were trained" in said
    records = lines(metrics)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 6, 7, 8, *range(11, 21)]
    assert records[-1]["loss"] == expected[-1]["loss"]
    assert json.loads((copy / STAGE / "result.json").read_text())["first_lr"] == 3e-3


def test_metrics_that_are_gone_altogether(copy):
    (unfinished(copy) / STAGE / "metrics.jsonl").unlink()
    assert "no record of steps 1-16" in resume(copy)


def test_what_an_interrupted_write_left_is_cleared(copy):
    left = [copy / STAGE / name for name in (".result.json.999999.partial", ".lineage.json.nowhere-1.partial")]
    for path in left:
        path.write_text("half")
    resume(unfinished(copy))
    assert not left[0].exists()  # of a process that is gone
    assert left[1].exists()  # of another host: it may be at work
