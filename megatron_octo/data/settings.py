"""The digest of all settings that decide a source's tokens, which decides whether a prepared source is still valid."""

from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_octo.data.corpora.problems import CORPUS_VERSION
from megatron_octo.data.decontaminate import protected_digest
from megatron_octo.data.heldout import heldout_settings
from megatron_octo.data.manifest import SourceManifest, read_manifest
from megatron_octo.data.tokenizer import tokenizer_sha256
from megatron_octo.data.tokenizer_file import asks_for_truncation
from megatron_octo.errors import DataError, did_you_mean
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.data import BuiltinSource
from megatron_octo.runtime.files import sha256_of_json
from megatron_octo.runtime.run_folder import RunFolder

PREPARATION_VERSION = 1
"""Increased whenever the same settings would give other tokens."""


def settings_digest(recipe: Recipe, source: str, tokenizer: Path) -> str:
    """SHA-256 of the source's section, the tokenizer, decontamination, held-out settings and the end of document.

    It includes the contents of evaluation files, but not those of local inputs: their names and sizes are compared
    separately, and the manifest has their SHA-256.

    Raises:
        DataError: an evaluation file or the tokenizer is missing.
    """
    section = recipe.data.sources[source]
    values: dict[str, Any] = {
        "version": PREPARATION_VERSION,
        "source": section.model_dump(mode="json", exclude={"description"}),
        "tokenizer": tokenizer_sha256(tokenizer),
        "end_of_document": recipe.model.end_of_document,
        "heldout": heldout_settings(recipe),
        "decontamination": None,
    }
    if section.decontaminate:
        decontamination = recipe.data.decontamination
        values["decontamination"] = decontamination.model_dump(mode="json")
        values["evaluation_files"] = protected_digest(decontamination)
    if asks_for_truncation(tokenizer / "tokenizer.json"):
        values["truncation"] = "off"  # documents prepared with truncation were cut, so they are prepared again
    if isinstance(section, BuiltinSource):
        values["corpus"] = {"version": CORPUS_VERSION, "reasoning-gym": metadata.version("reasoning-gym")}
    return sha256_of_json(values)


def sources_in_use(recipe: Recipe) -> list[str]:
    """The sources in the mixture of any stage, in the recipe's order."""
    used = {source for stage in recipe.stages.values() for source in stage.mixture}
    return [name for name in recipe.data.sources if name in used]


def known_sources(recipe: Recipe, names: list[str]) -> list[str]:
    """`names` without duplicates.

    Raises:
        DataError: the recipe has no such source.
    """
    for name in names:
        if name not in recipe.data.sources:
            hint = did_you_mean(name, recipe.data.sources, f"it has {', '.join(recipe.data.sources)}")
            raise DataError(f"{name!r} is no source of recipe {recipe.name!r}; {hint}")
    return list(dict.fromkeys(names))


def current_manifest(recipe: Recipe, run: RunFolder, source: str) -> SourceManifest:
    """The manifest of a source that was prepared with the recipe's current settings.

    Raises:
        DataError: it was not prepared, or with other settings.
    """
    manifest = read_manifest(run.source(source))
    if manifest.settings_digest != settings_digest(recipe, source, run.tokenizer):
        raise DataError(
            f"{run.source(source)}: prepared with other settings than the recipe's current ones (source, tokenizer, "
            "decontamination or held-out problems); run `octo data prepare`"
        )
    return manifest
