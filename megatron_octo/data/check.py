"""`octo data check`: the first rows of each source, before any source is read completely."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from megatron_octo.data.decontaminate import protected_problems
from megatron_octo.data.formats import Formatter
from megatron_octo.data.hub import hub_error, open_hub
from megatron_octo.data.inputs import find_inputs
from megatron_octo.data.rows.files import open_rows
from megatron_octo.data.rows.row import BadRow, fields_seen
from megatron_octo.data.settings import known_sources, sources_in_use
from megatron_octo.errors import OctoError
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.data import BuiltinSource, Decontamination, HubSource, Source

ROWS = 20
_SHOWN = 160


@dataclass(frozen=True)
class Preview:
    """The first rows of a source."""

    name: str
    licence: str
    gate: str = "none"
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    fields: str = ""
    """The fields of the first row that cannot be used."""
    document: str = ""
    """The first document."""
    error: str = ""
    """Why the source cannot be used at all; empty if it can."""

    @property
    def is_usable(self) -> bool:
        return not self.error and bool(self.document)

    @property
    def problem(self) -> str:
        """Why the source cannot be used, or what is wrong with some of its rows; empty if nothing is wrong."""
        if self.error:
            return self.error
        if not self.rows:
            return "it has no rows"
        reasons = "; ".join(f"{count} of {self.rows} rows: {reason}" for reason, count in self.bad.most_common(3))
        return f"{reasons} (the row has {self.fields})" if self.bad and self.fields else reasons


def check_sources(recipe: Recipe, sources: Sequence[str] | None, console: Console) -> bool:
    """Read and format the first rows of sources and of the evaluation files to decontaminate against; print the result.

    Args:
        sources: names. None: all sources in the mixture of any stage.

    Returns:
        Whether every source and every evaluation file can be used.

    Raises:
        DataError: the recipe has no such source.
    """
    names = known_sources(recipe, sources_in_use(recipe) if sources is None else list(sources))
    previews = []
    for name in names:
        with console.status(f"{name}: first rows"):
            previews.append(preview_source(name, recipe.data.sources[name]))
    console.print(_table(previews, recipe))
    for preview in previews:
        if preview.document:
            shown = " ".join(preview.document[: 4 * _SHOWN].split())
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
            console.print(f"[bold]{escape(preview.name)}[/bold]: {escape(shown)}", highlight=False, soft_wrap=True)
    for preview in previews:
        if preview.problem:
            word = "some rows cannot be used" if preview.is_usable else "cannot be used"
            console.print(f"{preview.name}: {word}: {preview.problem}", highlight=False, soft_wrap=True, markup=False)
    bad = [preview.name for preview in previews if not preview.is_usable]
    console.print(
        f"{len(bad)} of {len(previews)} sources cannot be used: {', '.join(bad)}" if bad
        else f"{len(previews)} sources: all can be used, by their first rows",
        highlight=False,
    )  # fmt: skip
    return _check_protected(recipe.data.decontamination, console) and not bad


def _check_protected(settings: Decontamination, console: Console) -> bool:
    """Whether the evaluation files can be read, judging by their first rows. Prints what is wrong with them."""
    if not settings.against:
        return True
    with console.status("evaluation files: first rows"):
        problems = protected_problems(settings, ROWS)
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True, markup=False)
    count = sum(len(evaluation.paths) for evaluation in settings.against.values())
    console.print(
        f"{len(problems)} of {count} evaluation files cannot be used" if problems
        else f"{count} evaluation files: all can be used, by their first rows",
        highlight=False,
    )  # fmt: skip
    return not problems


def preview_source(name: str, source: Source) -> Preview:
    """The first rows of a source. An error that prevents reading it is returned in the preview, not raised."""
    licence, gate = source.licence, "none"
    try:
        if isinstance(source, HubSource):
            opened = open_hub(name, source)
            gate = opened.gated or "none"
            if opened.licence is not None and opened.licence.lower() != licence.lower():
                licence = f"{licence} (card: {opened.licence})"
            return _read(name, source, licence, gate, _hub_rows(name, source, opened.data))
        return _read(name, source, licence, gate, _local_rows(name, source))
    except OctoError as error:
        if "it is gated" in str(error):
            gate = "closed"
        return Preview(name, licence, gate, error=str(error))


def _read(name: str, source: Source, licence: str, gate: str, rows: Iterator[Any]) -> Preview:
    format = str if isinstance(source, BuiltinSource) else Formatter(source.format)
    bad, seen, document, count = Counter[str](), "", "", 0
    for row in rows:
        count += 1
        try:
            text = format(row)
        except BadRow as reason:
            bad[str(reason)] += 1
            seen = seen or ("" if isinstance(row, BadRow) else fields_seen(row))
        else:
            document = document or text
    return Preview(name, licence, gate, count, bad, seen, document)


def _local_rows(name: str, source: Source) -> Iterator[Any]:
    if isinstance(source, BuiltinSource):
        from megatron_octo.data.corpora import make_corpus

        yield from islice(make_corpus(source.corpus, source.documents, source.seed, ()), ROWS)
        return
    assert not isinstance(source, HubSource)
    (piece, *_) = find_inputs(name, source, ()).pieces
    with closing(open_rows(piece, Formatter(source.format).fields)) as rows:
        yield from islice(rows, ROWS)


def _hub_rows(name: str, source: HubSource, data: Any) -> Iterator[Any]:
    try:
        yield from islice(data, ROWS)
    except (OctoError, GeneratorExit):
        raise
    except Exception as error:  # an error of the network, or of the file's format
        raise hub_error(name, source.dataset, "read", error) from None


def _table(previews: Sequence[Preview], recipe: Recipe) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("source", "from", "rows read", "can be used", "licence", "gate"):
        table.add_column(heading)
    for preview in previews:
        source = recipe.data.sources[preview.name]
        good = preview.rows - sum(preview.bad.values())
        table.add_row(
            preview.name, escape(_origin(source)), str(preview.rows),
            f"{good} of {preview.rows}" if preview.is_usable else "[red]no[/red]",
            escape(preview.licence), preview.gate,
        )  # fmt: skip
    return table


def _origin(source: Source) -> str:
    if isinstance(source, HubSource):
        return "/".join(part for part in (source.dataset, source.data_dir or source.subset) if part)
    return source.corpus if isinstance(source, BuiltinSource) else ", ".join(source.paths)
