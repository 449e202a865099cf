"""`octo data verify`: compares prepared files with their manifests."""

from rich.console import Console

from megatron_octo.data.manifest import SourceManifest, read_manifest, split_bytes, verify_manifest
from megatron_octo.data.settings import known_sources, sources_in_use
from megatron_octo.data.tokenizer import tokenizer_sha256
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.progress import byte_progress
from megatron_octo.runtime.run_folder import RunFolder


def verify_sources(recipe: Recipe, run: RunFolder, sources: list[str] | None, console: Console) -> bool:
    """Recompute size and SHA-256 of every prepared file, and print for each source whether it is intact.

    Args:
        sources: names. None: all sources in the mixture of any stage.

    Returns:
        Whether all sources are intact and were made with the run folder's tokenizer.

    Raises:
        DataError: the recipe has no such source.
    """
    names = known_sources(recipe, sources_in_use(recipe) if sources is None else list(sources))
    manifests: dict[str, SourceManifest] = {}
    damaged: dict[str, str] = {}
    for name in names:
        try:
            manifests[name] = _manifest(run, name)
        except DataError as error:
            damaged[name] = str(error)
    with byte_progress("verify", sum(map(split_bytes, manifests.values()))) as on_bytes:
        for name, manifest in manifests.items():
            try:
                verify_manifest(run.source(name), manifest, on_bytes)
            except DataError as error:
                damaged[name] = str(error)
    for name in names:
        if name in damaged:
            line = f"{name}: DAMAGED: {damaged[name]}"
        else:
            files = [*manifests[name].train.files, *manifests[name].validation.files]
            line = f"{name}: intact ({len(files)} files, {split_bytes(manifests[name]):,} bytes)"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return not damaged


def _manifest(run: RunFolder, name: str) -> SourceManifest:
    manifest = read_manifest(run.source(name))
    if manifest.source != name:
        raise DataError(
            f"{run.source(name)}: its manifest belongs to source {manifest.source!r}; remove it and run "
            "`octo data prepare`"
        )
    if manifest.tokenizer.sha256 != tokenizer_sha256(run.tokenizer):
        raise DataError(
            f"{run.source(name)}: made with another tokenizer than the one in {run.tokenizer}; run `octo data prepare`"
        )
    return manifest
