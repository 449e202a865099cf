"""Links out of a folder are not followed; those of the hub's cache are, which is made of them."""

import shutil

import pytest

from megatron_octo.bridge.export_hf import export_checkpoint
from megatron_octo.bridge.hf_folder import INDEX
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.cli import main
from megatron_octo.errors import CheckpointError, ModelError
from megatron_octo.recipe import Parallel
from tests.bridge.models import make_model, same_bits
from tests.support import files_under

NAMES = (
    "LICENSE", "NOTICE", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
    "merges.txt", "tokenizer.model", "special_tokens_map.json",
)  # fmt: skip


TOKENIZER = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text('{"secret": 1}')
    return tmp_path / "elsewhere" / "secret"


@pytest.fixture
def hf(tmp_path):
    return make_model("llama-3.1", tmp_path / "hf", shard="150KB")


def linked(folder, name, target):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["absolute", "relative", "twice"])
def test_companions_that_are_links_out_are_not_imported(name, form, hf, secret, tmp_path):
    target = {"absolute": secret, "relative": "../elsewhere/secret", "twice": "between"}[form]
    if form == "twice":
        (hf / "between").symlink_to(secret)
    linked(hf, name, target)
    before = files_under(tmp_path)
    with pytest.raises(ModelError, match=f"{name}: leads out of its folder, to .*elsewhere/secret"):
        import_checkpoint(hf, tmp_path / "megatron", Parallel())
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", INDEX, "model-00002-of"])
def test_a_configuration_or_weights_that_are_links_out(name, hf, secret, tmp_path, capsys):
    (file,) = hf.glob(f"{name}*") if name.startswith("model-") else [hf / name]
    moved = tmp_path / "elsewhere" / file.name
    file.rename(moved)
    file.symlink_to(moved)
    assert main(["convert", "import", str(hf), str(tmp_path / "megatron")]) == 2
    assert f"{file.name}: leads out of its folder" in capsys.readouterr().err


def test_a_circle_of_links(hf, tmp_path):
    linked(hf, "LICENSE", "NOTICE")
    linked(hf, "NOTICE", "LICENSE")
    import_checkpoint(hf, tmp_path / "megatron", Parallel())  # no file is there
    assert not (tmp_path / "megatron/hf/LICENSE").exists()


def test_links_within_the_folder_are_followed(hf, tmp_path):
    (hf / "texts").mkdir()
    (hf / "texts" / "licence").write_text("mine")
    linked(hf, "LICENSE", "texts/licence")
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    kept = tmp_path / "megatron/hf/LICENSE"
    assert kept.read_text() == "mine" and not kept.is_symlink()


def test_the_hubs_cache_is_followed(hf, tmp_path):
    """`snapshots/<commit>/` is links into `blobs/`; so may the folder be that is given."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (hf / "LICENSE").write_text("mine")
    for number, file in enumerate(sorted(hf.iterdir())):
        shutil.copyfile(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    (tmp_path / "given").symlink_to(snapshot)
    for number, source in enumerate((snapshot, tmp_path / "given")):
        import_checkpoint(source, tmp_path / f"megatron-{number}", Parallel())
        export_checkpoint(tmp_path / f"megatron-{number}", tmp_path / f"back-{number}")
        assert same_bits(hf, tmp_path / f"back-{number}")
        assert (tmp_path / f"back-{number}" / "LICENSE").read_text() == "mine"
    outside = tmp_path / "hub" / "token"
    outside.write_text("secret")
    linked(snapshot, "LICENSE", "../../../token")
    with pytest.raises(ModelError, match="LICENSE: leads out of its folder"):
        import_checkpoint(snapshot, tmp_path / "megatron", Parallel())


@pytest.mark.parametrize("place", ["kept", "config", "tokenizer"])
def test_an_export_does_not_take_links_along(place, hf, secret, tmp_path):
    (hf / "tokenizer.json").write_text(TOKENIZER)
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    options = {}
    if place == "kept":
        linked(tmp_path / "megatron" / "hf", "LICENSE", secret)
    elif place == "config":
        (tmp_path / "megatron" / "manifest.json").unlink()
        shutil.rmtree(tmp_path / "megatron" / "hf")
        linked(hf, "LICENSE", secret)
        options["config"] = hf
    else:
        shutil.copytree(hf, tmp_path / "tokenizer")
        linked(tmp_path / "tokenizer", "merges.txt", secret)
        options["tokenizer"] = tmp_path / "tokenizer"
    before = files_under(tmp_path)
    # what an import keeps is hashed, so that one may be named as altered before
    with pytest.raises((ModelError, CheckpointError), match=r"leads out of its folder|SHA-256|LICENSE"):
        export_checkpoint(tmp_path / "megatron", tmp_path / "back", **options)
    assert files_under(tmp_path) == before


def test_weights_of_a_checkpoint_that_are_links_out(hf, tmp_path):
    import_checkpoint(hf, tmp_path / "megatron", Parallel())
    file = tmp_path / "megatron" / "__0_0.distcp"
    file.rename(tmp_path / "elsewhere.distcp")
    file.symlink_to(tmp_path / "elsewhere.distcp")
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: leads out of its folder"):
        export_checkpoint(tmp_path / "megatron", tmp_path / "back")
