"""The base model of a recipe: finding it, checking its architecture, and importing it into the run folder."""

from pathlib import Path

from megatron_octo.bridge.companions import check_companions
from megatron_octo.bridge.config import architecture_of, read_config
from megatron_octo.bridge.hf_folder import open_hf_folder
from megatron_octo.errors import ModelError
from megatron_octo.recipe import Parallel, Recipe
from megatron_octo.recipe.model import ModelSection
from megatron_octo.runtime.atomic_folder import check_target
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.hub import download, local_folder
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.run_folder import RunFolder

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_REST = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*", "USE_POLICY.md", "NOTICE")


def is_imported(run: RunFolder) -> bool:
    """Whether the run folder has the base's weights. They are complete: the folder is renamed into place."""
    return (run.base / MANIFEST).is_file()


def check_base(recipe: Recipe, run: RunFolder) -> None:
    """Refuse a base that cannot be imported, as far as that can be seen without its weights.

    Raises:
        ModelError: no such model, another architecture than the recipe's, unreadable companion files, or tensors that
            are not those of its architecture.
        RuntimeSetupError: too little room on the disk.
    """
    name = recipe.model.base
    folder = _find(recipe.model, _REST)
    architecture = architecture_of(read_config(folder), f"model.base = {name}")
    if changed := recipe.model.architecture.differences(architecture):
        raise ModelError(
            f"model.base = {name!r} is not of model.architecture: {'; '.join(changed)} in its config.json; "
            "correct the recipe, or name the right base"
        )
    check_companions(folder)
    if _local(recipe.model) is not None:
        check_target(run.base, open_hf_folder(folder).bytes)


def import_base(recipe: Recipe, run: RunFolder, layout: Parallel) -> None:
    """Import the base into the run folder unless it is already there. One process of a run calls it.

    Raises:
        ModelError: as `check_base`.
    """
    if is_imported(run):
        return
    from megatron_octo.bridge.import_hf import import_checkpoint  # brings Megatron-Core, which takes seconds

    check_base(recipe, run)
    source = _find(recipe.model, (*_WEIGHTS, *_REST))
    total = 2 * open_hf_folder(source).bytes
    with byte_progress(f"import {recipe.model.base}", total) as on_bytes:
        origin = {"name": recipe.model.base, "revision": recipe.model.base_revision}
        import_checkpoint(source, run.base, layout, recipe=recipe.name, origin=origin, on_bytes=on_bytes)


def _local(model: ModelSection) -> Path | None:
    assert model.base is not None
    return local_folder(model.base, ModelError, "model.base")


def _find(model: ModelSection, patterns: tuple[str, ...]) -> Path:
    """The folder of the base: local, or in the hub's cache."""
    assert model.base is not None
    return _local(model) or download(
        model.base,
        model.base_revision,
        patterns,
        error=ModelError,
        key="model.base",
        kind="model",
        way_out="give a folder, check the name, the network and HF_TOKEN, or set model.initialize=random to train the "
        "architecture from random weights",
    )
