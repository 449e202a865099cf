"""An existing export is compared with its recorded hashes before it is skipped or used."""

import json
import shutil

import pytest

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.exports import RECORD, checked_export, exported_digest, is_export
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.cli import main
from megatron_octo.errors import CheckpointError
from megatron_octo.recipe import Parallel
from megatron_octo.runtime.files import sha256_of
from tests.bridge.models import make_model, same_bits
from tests.support import MINI, octo

AGAIN = "run it again"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint and its export, in three shards."""
    folder = tmp_path_factory.mktemp("made")
    import_checkpoint(make_model("llama-3.1", folder / "hf"), folder / "megatron", Parallel())
    export_checkpoint(folder / "megatron", folder / "back", shard_bytes=150_000)
    assert len(list((folder / "back").glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def back(made, tmp_path):
    shutil.copytree(made / "back", tmp_path / "back")
    return tmp_path / "back"


def flip(file, at=-100):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def first(folder):
    return min(folder.glob("*.safetensors"))


def test_a_whole_export_is_of_its_checkpoint(made, back):
    digest = checked_export(back, AGAIN)
    assert digest == exported_digest(back) == sha256_of(made / "megatron" / "manifest.json")
    (back / "README.md").write_text("my notes")  # nobody loads it
    (back / "notes.txt").write_text("mine")
    assert checked_export(back, AGAIN) == digest


DAMAGES = {
    "a bit": (lambda f: flip(first(f)), "SHA-256"),
    "a bit of the header": (lambda f: flip(first(f), 20), "SHA-256"),
    "cut": (lambda f: first(f).write_bytes(first(f).read_bytes()[:-1]), "recorded with"),
    "empty": (lambda f: first(f).write_bytes(b""), "0 bytes"),
    "gone": (lambda f: first(f).unlink(), "missing"),
    "all gone": (lambda f: [file.unlink() for file in f.glob("*.safetensors")], "missing"),
    "moved away": (lambda f: shutil.move(first(f), f.parent / "w"), "missing"),
    "configuration": (lambda f: flip(f / "config.json"), "config.json: SHA-256"),
    "index": (lambda f: (f / "model.safetensors.index.json").unlink(), "index.json: missing"),
    "one more shard": (lambda f: shutil.copyfile(first(f), f / "model.safetensors"), "model.safetensors: not of this"),
    "other weights": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pytorch_model.bin: not of this export"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json: not of this export"),
    "code": (lambda f: (f / "modeling_mine.py").write_text(""), "modeling_mine.py: not of this export"),
    "a template": (lambda f: (f / "chat_template.jinja").write_text(""), "chat_template.jinja: not of this export"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_as_it_was_written_is_named(name, back):
    damage, expected = DAMAGES[name]
    damage(back)
    with pytest.raises(CheckpointError) as caught:
        checked_export(back, AGAIN)
    message = str(caught.value)
    assert expected in message and AGAIN in message and str(back) in message


def test_weights_that_are_a_link_out_of_the_folder(back):
    file = first(back)
    file.rename(back.parent / "elsewhere")
    file.symlink_to(back.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        checked_export(back, AGAIN)


RECORDS = {
    "empty": b"",
    "cut": b'{"checkpoint": "a", "files": [',
    "a list": b"[]",
    "null": b"null",
    "no files": b'{"checkpoint": "a", "checkpoint_manifest_sha256": null}',
    "files empty": b'{"checkpoint": "a", "checkpoint_manifest_sha256": null, "files": []}',
    "files of numbers": b'{"checkpoint": "a", "checkpoint_manifest_sha256": null, "files": [1]}',
    "above": b'{"checkpoint": "a", "checkpoint_manifest_sha256": null, "files": '
    b'[{"path": "../x", "bytes": 1, "sha256": "0"}]}',
    "digest a list": b'{"checkpoint": "a", "checkpoint_manifest_sha256": [], "files": []}',
    "not UTF-8": b'{"checkpoint": "\xff"}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_is_damaged_is_our_error(name, back):
    (back / RECORD).write_bytes(RECORDS[name])
    for read in (exported_digest, lambda folder: checked_export(folder, AGAIN)):
        with pytest.raises(CheckpointError) as caught:
            read(back)
        assert RECORD in str(caught.value) and "octo export" in str(caught.value)


def test_a_folder_without_a_record_is_no_export(back):
    (back / RECORD).unlink()
    assert not is_export(back) and exported_digest(back) is None
    with pytest.raises(CheckpointError, match="so it is not an export; run it again"):
        checked_export(back, AGAIN)


@pytest.fixture(scope="module")
def exported(prepared, tmp_path_factory):
    """A run whose first stage is trained and exported."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(prepared / "runs", folder / "runs")
    octo("train", str(MINI), "stable", cwd=folder)
    octo("export", str(MINI), "stable", cwd=folder)
    return folder


@pytest.fixture
def run(exported, tmp_path):
    shutil.copytree(exported / "runs", tmp_path / "runs")
    return tmp_path


def export(run, capsys):
    """`octo export`: its status, and what it says."""
    status = main(["export", str(MINI), "stable", "--runs", str(run / "runs")])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return status, told.out + told.err


def test_octo_export_skips_what_is_whole_and_makes_what_is_not_again(run, capsys):
    hf = run / "runs/mini/stages/stable/hf"
    kept = run / "kept"
    shutil.copytree(hf, kept)
    assert "already exported" in export(run, capsys)[1]
    for damage in (
        lambda: flip(hf / "model.safetensors"),
        (hf / "model.safetensors").unlink,
        lambda: (hf / RECORD).write_text(""),
        lambda: (hf / "pytorch_model.bin").write_bytes(b"x"),
    ):
        damage()
        status, told = export(run, capsys)
        assert status == 0 and "already exported" not in told
        assert "export it again" in told or "exported again" in told
        assert "read back and equal bit for bit" in told
        assert same_bits(hf, kept) and not (hf / "pytorch_model.bin").exists()
        assert "already exported" in export(run, capsys)[1]


@pytest.mark.parametrize("command", ["heldout", "rl"])
def test_nothing_starts_from_an_export_that_is_damaged(command, run):
    pytest.importorskip("vllm")
    pytest.importorskip("openrlhf")
    from tests.rl.runs import RL

    hf = run / "runs/mini/stages/stable/hf"
    flip(hf / "model.safetensors")
    options = ["-s", RL] if command == "rl" else []
    told = octo(command, str(MINI), "stable", *options, cwd=run, check=False)
    assert told.returncode == 2 and "model.safetensors: SHA-256" in told.stderr, told.stderr
    assert "run `octo export mini stable` again" in told.stderr
    (hf / RECORD).write_text("")
    told = octo(command, str(MINI), "stable", *options, cwd=run, check=False)
    assert told.returncode == 2 and RECORD in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"settings": {}}', '{"settings": {"stages": []}}', "{" * 9999])
def test_a_lineage_that_is_damaged_is_our_error(text, run, capsys):
    """The model card is made from it; and nothing is written."""
    hf = run / "runs/mini/stages/stable/hf"
    shutil.rmtree(hf)
    (run / "runs/mini/stages/stable/lineage.json").write_text(text)
    status, told = export(run, capsys)
    assert status == 2 and "lineage.json" in told and not hf.exists()


def test_a_source_manifest_that_is_damaged_is_our_error(run, capsys):
    hf = run / "runs/mini/stages/stable/hf"
    shutil.rmtree(hf)
    (run / "runs/mini/data/web/manifest.json").write_text("")
    status, told = export(run, capsys)
    assert status == 2 and "web/manifest.json" in told and not hf.exists()


def test_the_card_says_what_the_run_says(exported):
    card = (exported / "runs/mini/stages/stable/hf/README.md").read_text()
    assert "| stable | the start | " in card and "Recipe `mini`, seed 7. Starts from random weights." in card
    assert "| web | builtin: web | " in card and "| qa | builtin: qa | " in card
    record = json.loads((exported / "runs/mini/stages/stable/hf" / RECORD).read_text())
    assert record["rounded_to_inf"] == record["rounded_to_zero"] == 0
