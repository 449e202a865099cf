"""Checkpoint folders: what is complete, and what verification finds."""

import json

import pytest

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoints import (
    CheckpointManifest,
    complete_steps,
    folder_name,
    read_checkpoint_manifest,
    remove_checkpoint,
    remove_partial_checkpoints,
    verify_checkpoint,
    write_checkpoint_manifest,
)
from megatron_octo.runtime.files import sha256_of
from megatron_octo.runtime.recorded_files import RecordedFile


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / folder_name(500)
    folder.mkdir()
    for name in ("__0_0.distcp", "common.pt"):
        (folder / name).write_bytes(name.encode() * 100)
    records = [RecordedFile(path=p.name, bytes=p.stat().st_size, sha256=sha256_of(p)) for p in sorted(folder.iterdir())]
    manifest = CheckpointManifest(
        recipe="tiny", stage="stable", step=500, stage_tokens=1, lineage_tokens=1, learning_rate=1e-3, layout={},
        resharding="full", architecture={}, data_fingerprint={}, files=records,
    )  # fmt: skip
    write_checkpoint_manifest(folder, manifest)
    return folder


def test_a_whole_checkpoint_verifies(checkpoint):
    assert verify_checkpoint(checkpoint).step == 500
    assert complete_steps(checkpoint.parent) == [500]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "common.pt").write_bytes(b"y" * 900), "common.pt: SHA-256"),
        (lambda f: (f / "common.pt").write_bytes(b"y"), "common.pt: 1 bytes, recorded with 900 bytes"),
        (lambda f: (f / "__0_0.distcp").unlink(), "__0_0.distcp: missing"),
        (lambda f: (f / "stray").write_bytes(b""), "stray: not in the manifest"),
    ],
)
def test_each_damage_is_named_with_the_way_out(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(CheckpointError, match="resume from an earlier checkpoint") as error:
        verify_checkpoint(checkpoint)
    assert message in str(error.value)


def test_a_folder_without_a_manifest_is_not_complete(checkpoint):
    (checkpoint / "manifest.json").unlink()
    assert complete_steps(checkpoint.parent) == []
    with pytest.raises(CheckpointError, match="not complete"):
        read_checkpoint_manifest(checkpoint)


@pytest.mark.parametrize("text", ["", "{", json.dumps({"format": 1}), json.dumps([1])])
def test_a_manifest_that_is_none_is_refused(checkpoint, text):
    (checkpoint / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a usable checkpoint manifest"):
        read_checkpoint_manifest(checkpoint)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        verify_checkpoint(tmp_path / "step-0000001")


def test_leftovers_are_removed_and_never_counted(checkpoint):
    partial = checkpoint.parent / ".step-0000600.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text("{}")
    assert complete_steps(checkpoint.parent) == [500]
    assert remove_partial_checkpoints(checkpoint.parent) == [".step-0000600.partial"]
    remove_checkpoint(checkpoint.parent, 500)
    assert list(checkpoint.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("step", 17, "altered since it was written"),
        ("stage", "other", "altered since it was written"),
        ("learning_rate", 1.0, "altered since it was written"),
        ("digest", None, "altered since it was written"),
        ("format", 1, "of step 17, in a folder of step 500"),
        ("format", 3, "format = 3: Input should be less than or equal to 2"),
        ("step", -1, "step = -1"),
        ("surprise", 1, "surprise = 1: Extra inputs"),
    ],
)
def test_a_manifest_that_was_altered(checkpoint, key, value, message):
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    content[key] = value
    if key == "format":
        content["step"], content["digest"] = 17, None
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint_manifest(checkpoint)


def test_a_manifest_of_before_digests_is_read(checkpoint):
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text()) | {"format": 1}
    del content["digest"]
    path.write_text(json.dumps(content))
    assert read_checkpoint_manifest(checkpoint).step == 500


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", ""])
def test_a_path_that_leaves_the_folder(path):
    with pytest.raises(ValueError, match="leaves the folder"):
        RecordedFile(path=path, bytes=0, sha256="")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "{}", "[" * 100_000, '{"step": ' + "9" * 5000 + "}"])
def test_a_manifest_that_is_none(checkpoint, text):
    (checkpoint / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        read_checkpoint_manifest(checkpoint)
