"""What a source's tasks read: how many tasks there are, and the first step of their pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from megatron_octo.data.formats import Formatter
from megatron_octo.data.paths import input_files
from megatron_octo.data.pieces import pieces_of
from megatron_octo.data.readers import BuiltinDocuments, FileRows, HubRows
from megatron_octo.data.rows.files import Piece
from megatron_octo.data.rows.row import has_field
from megatron_octo.data.tally import Tally
from megatron_octo.errors import DataError
from megatron_octo.recipe.data import BuiltinSource, HubSource, JsonlSource, ParquetSource, Source

_MOST_HUB_TASKS = 256


@dataclass(frozen=True)
class Inputs:
    """The input of one source, found and looked at, but not read."""

    tasks: int
    reader: Callable[[Tally], PipelineStep]
    origin: dict[str, Any]
    total: int | None
    """Of what `Tally.done` counts; None where it is not known beforehand."""
    files: tuple[Path, ...] = ()
    revision: str | None = None
    pieces: tuple[Piece, ...] = field(default=(), repr=False)


def find_inputs(name: str, source: Source, heldout: Sequence[str]) -> Inputs:
    """Look for a source's input.

    Raises:
        DataError: it is not there, or cannot be what the recipe says.
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
        raise DataError(f"data.sources.{name}.paths: the Parquet files hold no rows; take the source out")
    return Inputs(
        len(pieces),
        lambda tally: FileRows(pieces, formatter, tally),
        {"paths": source.paths},
        total=sum(piece.weight for piece in pieces),
        files=tuple(files),
        pieces=tuple(pieces),
    )


def _hub(name: str, source: HubSource) -> Inputs:
    from datasets import load_dataset

    options: dict[str, Any] = {"name": source.subset, "data_dir": source.data_dir, "split": source.split}
    is_local = Path(source.dataset).expanduser().is_dir()
    dataset = str(Path(source.dataset).expanduser()) if is_local else source.dataset
    try:
        revision = None if is_local else _commit(source)
        data = load_dataset(dataset, revision=revision, streaming=True, **options)
    except Exception as error:  # the clients raise many kinds: no network, no such name, subset, split or access
        raise DataError(
            f"data.sources.{name}: the data set {source.dataset!r} cannot be opened ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); check dataset, subset, data_dir, "
            "split, the network and HF_TOKEN, or download it and use a jsonl or parquet source"
        ) from None
    formatter = Formatter(source.format)
    missing = [f for f in formatter.fields if data.column_names is not None and not has_field(data.column_names, f)]
    if missing:
        raise DataError(
            f"data.sources.{name}.format: {source.dataset!r} has no field {missing[0]!r}; "
            f"it has {', '.join(data.column_names)}"
        )
    options["revision"] = revision
    origin = {"dataset": source.dataset, "subset": source.subset, "data_dir": source.data_dir, "split": source.split}
    return Inputs(
        max(1, min(data.n_shards, _MOST_HUB_TASKS)),
        lambda tally: HubRows(dataset, options, formatter, tally),
        origin,
        total=None,
        revision=revision,
    )


def _commit(source: HubSource) -> str | None:
    """The commit that a branch, a tag or nothing (the newest) stands for now; it is what the manifest records."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(source.dataset, revision=source.revision).sha
