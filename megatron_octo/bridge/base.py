"""The base model of a recipe: where its weights are, whether it is the recipe's shape, and its import into the run."""

from pathlib import Path

from megatron_octo.bridge.companions import check_companions
from megatron_octo.bridge.config import architecture_of, read_config
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.bridge.import_hf import import_checkpoint
from megatron_octo.bridge.place import check_place
from megatron_octo.data.paths import is_folder
from megatron_octo.errors import ModelError
from megatron_octo.reading.text import expanded
from megatron_octo.recipe import Parallel, Recipe
from megatron_octo.recipe.model import ModelSection
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.run_folder import RunFolder

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_REST = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*", "USE_POLICY.md", "NOTICE")


def is_imported(run: RunFolder) -> bool:
    """Whether the base's weights are in the run folder, whole."""
    return (run.base / MANIFEST).is_file()


def check_base(recipe: Recipe, run: RunFolder) -> None:
    """Refuse a base that cannot be imported, as far as that shows without its weights.

    Raises:
        ModelError: no such model, another architecture than the recipe's, companions that nobody could read, or tensors
            that are not those it should have.
        RuntimeSetupError: no room for it.
    """
    name = recipe.model.base
    folder = _found(recipe.model, _REST)
    theirs = architecture_of(read_config(folder), f"model.base = {name}")
    if changed := recipe.model.architecture.differences(theirs):
        raise ModelError(
            f"model.base = {name!r} is not of model.architecture: {'; '.join(changed)} in its config.json; "
            "correct the recipe, or name the right base"
        )
    check_companions(folder)
    if _is_local(recipe.model):
        check_place(run.base, open_hf_folder(folder).bytes)


def import_base(recipe: Recipe, run: RunFolder, layout: Parallel) -> None:
    """Import the base into the run folder, unless it is there. One process of a run calls it.

    Raises:
        ModelError: as `check_base`.
    """
    if is_imported(run):
        return
    check_base(recipe, run)
    source = _found(recipe.model, (*_WEIGHTS, *_REST))
    total = 2 * open_hf_folder(source).bytes
    with byte_progress(f"import {recipe.model.base}", total) as on_bytes:
        origin = {"name": recipe.model.base, "revision": recipe.model.base_revision}
        import_checkpoint(source, run.base, layout, recipe=recipe.name, origin=origin, on_bytes=on_bytes)


def _is_local(model: ModelSection) -> bool:
    return model.base is not None and is_folder(expanded(model.base, ModelError, "model.base"))


def _found(model: ModelSection, patterns: tuple[str, ...]) -> Path:
    """The folder of the base: local, or fetched from the hub (what is in its cache is not fetched again)."""
    assert model.base is not None
    if _is_local(model):
        return expanded(model.base, ModelError, "model.base")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.base, revision=model.base_revision, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises many kinds: no network, no such name, no access
        raise ModelError(
            f"model.base = {model.base!r}: neither a folder nor a model the hub gives us ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); give a folder, check the name, the "
            "network and HF_TOKEN, or set model.initialize=random to train the shape from random weights"
        ) from None
