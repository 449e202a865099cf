"""`octo data prepare`: tokenizes every source that a recipe's stages draw from, for Megatron-Core."""

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table

from megatron_octo.data.bad_rows import BadRows
from megatron_octo.data.decontaminate import read_protected
from megatron_octo.data.executors import check_executor
from megatron_octo.data.heldout import heldout_problems, practice_problems, write_heldout
from megatron_octo.data.inputs import Inputs, find_inputs
from megatron_octo.data.manifest import MANIFEST, SourceManifest, TokenizerRecord, read_manifest
from megatron_octo.data.ngrams import NGramIndex
from megatron_octo.data.paths import input_files
from megatron_octo.data.settings import known_sources, settings_digest, sources_in_use
from megatron_octo.data.source import Common, prepare_source
from megatron_octo.data.tokenizer import load_tokenizer, tokenizer_sha256, vocabulary_size
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.data import JsonlSource, ParquetSource
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.runtime.run_folder import RunFolder


def prepare(
    recipe: Recipe,
    run: RunFolder,
    *,
    sources: Sequence[str] | None = None,
    workers: int = 2,
    executor: Literal["local", "slurm", "ray"] = "local",
    executor_options: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> None:
    """Write `data/<source>/{train,validation}.{bin,idx}` and `manifest.json` for the sources of a recipe.

    A source that was already prepared with the same settings is skipped. The result is the same for any number of
    workers and any executor.

    Args:
        sources: names. None: all sources in the mixture of any stage.
        workers: number of tasks at a time. Only the size of a source decides how it is cut into tasks.
        executor: `local` (processes of this machine), `slurm` or `ray`, where the run folder must be shared.
        executor_options: the executor's options; `slurm` needs `partition` and `time`.

    Raises:
        DataError: something is wrong with a source, a tokenizer or an evaluation file. All inputs are found before
            any is read. Sources that were already prepared are kept.
    """
    console = console or Console()
    if workers < 1:
        raise DataError(f"workers = {workers}: at least 1 is needed")
    names = known_sources(recipe, sources_in_use(recipe) if sources is None else list(sources))
    options = executor_options or {}
    check_executor(executor, options)
    run.make()
    common = _common(recipe, run, workers, executor, options, console)
    pending: dict[str, tuple[Inputs, str]] = {}
    for name in names:
        digest = settings_digest(recipe, name, run.tokenizer)
        before = _finished(run, name)
        if before is not None and before.settings_digest == digest and not _inputs_changed(before, recipe, name):
            console.print(f"{name}: already prepared, {format_tokens(before.train.tokens)} tokens")
            continue
        if before is not None:
            console.print(f"{name}: settings or input changed since it was prepared; preparing it again")
        pending[name] = (find_inputs(name, recipe.data.sources[name], common.heldout), digest)
    table = _table()
    for name, (inputs, digest) in pending.items():
        prepared = prepare_source(name, recipe.data.sources[name], inputs, digest, run.source(name), common)
        _add_row(table, prepared.manifest)
        _print_bad_rows(console, name, prepared.bad_rows)
    if pending:
        console.print(table)


def _common(
    recipe: Recipe,
    run: RunFolder,
    workers: int,
    executor: Literal["local", "slurm", "ray"],
    options: Mapping[str, str],
    console: Console,
) -> Common:
    tokenizer = load_tokenizer(recipe.model, run.tokenizer)
    problems = heldout_problems(recipe)
    index = NGramIndex.build(read_protected(recipe.data.decontamination), recipe.data.decontamination.ngram)
    for name, skipped in index.skipped.items():
        if skipped:
            console.print(f"decontamination: {skipped:,} texts of {name} are too short to search for")
    if problems:
        write_heldout(problems, run.heldout)
    end = recipe.model.end_of_document
    record = TokenizerRecord(
        name=recipe.model.tokenizer,
        sha256=tokenizer_sha256(run.tokenizer),
        vocab_size=vocabulary_size(tokenizer.backend_tokenizer),
        end_of_document=end,
        end_of_document_id=tokenizer.convert_tokens_to_ids(end),
    )
    heldout = tuple(problem.question for problem in [*problems, *practice_problems(recipe)])
    return Common(run.tokenizer_file, record, index, heldout, workers, executor, options, console)


def _finished(run: RunFolder, name: str) -> SourceManifest | None:
    folder = run.source(name)
    if not folder.exists():
        return None
    if not run.source_manifest(name).exists():
        raise DataError(
            f"{folder}: not a prepared source (no {MANIFEST}), but in its place; remove it, and run this again"
        )
    manifest = read_manifest(folder)
    for file in (*manifest.train.files, *manifest.validation.files):
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise DataError(f"{path}: missing or cut short; remove {folder} and run `octo data prepare` again")
    return manifest


def _inputs_changed(before: SourceManifest, recipe: Recipe, name: str) -> bool:
    """Whether the names or sizes of the local input files changed. If the files are gone, that is no change."""
    source = recipe.data.sources[name]
    if not before.inputs or not isinstance(source, JsonlSource | ParquetSource):
        return False
    try:
        files = input_files(f"data.sources.{name}.paths", source.paths)
    except DataError:
        return False
    return [(str(path), path.stat().st_size) for path in files] != [(file.path, file.bytes) for file in before.inputs]


def _table() -> Table:
    table = Table(box=None, pad_edge=False)
    for heading, justify in (
        ("source", "left"), ("documents", "right"), ("tokens", "right"), ("validation", "right"),
        ("bad rows", "right"), ("dropped as contaminated", "left"),
    ):  # fmt: skip
        table.add_column(heading, justify="right" if justify == "right" else "left")
    return table


def _add_row(table: Table, manifest: SourceManifest) -> None:
    dropped = ", ".join(f"{name} {count:,}" for name, count in manifest.contaminated.items()) or "none"
    table.add_row(
        manifest.source,
        f"{manifest.train.documents:,}",
        format_tokens(manifest.train.tokens),
        f"{manifest.validation.documents:,} documents",
        f"{sum(manifest.bad_rows.values()):,} of {manifest.rows_read:,}",
        dropped,
    )


def _print_bad_rows(console: Console, name: str, bad_rows: BadRows) -> None:
    if bad_rows.total:
        console.print(f"{name}: {bad_rows.total:,} of {bad_rows.rows:,} rows could not be used", highlight=False)
        for line in bad_rows.lines():
            console.print(f"  {line}", highlight=False, markup=False)
