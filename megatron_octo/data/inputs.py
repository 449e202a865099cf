"""The input of a source: the number of its tasks, and the first step of their pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from megatron_octo.data.formats import Formatter
from megatron_octo.data.hub import HubRows, open_hub
from megatron_octo.data.paths import input_files
from megatron_octo.data.pieces import pieces_of
from megatron_octo.data.readers import BuiltinDocuments, FileRows
from megatron_octo.data.rows.files import Piece
from megatron_octo.data.tally import Tally
from megatron_octo.errors import DataError
from megatron_octo.recipe.data import BuiltinSource, HubSource, JsonlSource, ParquetSource, Source


@dataclass(frozen=True)
class Inputs:
    """The input of one source, found but not yet read."""

    tasks: int
    reader: Callable[[Tally], PipelineStep]
    origin: dict[str, Any]
    total: int | None
    """The final value of `Tally.done`. None: it is not known beforehand."""
    files: tuple[Path, ...] = ()
    revision: str | None = None
    pieces: tuple[Piece, ...] = field(default=(), repr=False)


def find_inputs(name: str, source: Source, heldout: Sequence[str]) -> Inputs:
    """Find a source's input.

    Raises:
        DataError: it does not exist, or is not what the recipe says.
    """
    match source:
        case BuiltinSource(corpus=corpus, documents=documents, seed=seed):
            return Inputs(
                1,
                lambda tally: BuiltinDocuments(corpus, documents, seed, tuple(heldout), tally),
                {"corpus": corpus, "documents": documents, "seed": seed},
                total=documents,
            )
        case JsonlSource() | ParquetSource():
            return _local(name, source)
        case HubSource():
            return _hub(name, source)


def _local(name: str, source: JsonlSource | ParquetSource) -> Inputs:
    formatter, files = Formatter(source.format), input_files(f"data.sources.{name}.paths", source.paths)
    pieces = pieces_of(name, source, files, formatter.fields)
    if not pieces:
        raise DataError(f"data.sources.{name}.paths: the Parquet files have no rows; remove the source")
    return Inputs(
        len(pieces),
        lambda tally: FileRows(pieces, formatter, tally),
        {"paths": source.paths},
        total=sum(piece.weight for piece in pieces),
        files=tuple(files),
        pieces=tuple(pieces),
    )


def _hub(name: str, source: HubSource) -> Inputs:
    opened, formatter = open_hub(name, source), Formatter(source.format)
    origin = {"dataset": source.dataset, "subset": source.subset, "data_dir": source.data_dir, "split": source.split}
    return Inputs(
        opened.tasks,
        lambda tally: HubRows(name, opened.dataset, opened.options, formatter, tally),
        origin,
        total=None,
        revision=opened.options["revision"],
    )
