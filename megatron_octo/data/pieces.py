"""Local input files, cut into parts that tasks read. The cut depends on the files alone, never on the workers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from megatron_octo.data.rows.files import Piece, Shape, shape_of
from megatron_octo.data.rows.parquet import open_parquet
from megatron_octo.data.rows.row import fields_seen, has_field
from megatron_octo.errors import DataError, closest
from megatron_octo.recipe.data import JsonlSource, ParquetSource

PIECE_BYTES = 16 << 20
MOST_PIECES = 1024


def pieces_of(
    name: str, source: JsonlSource | ParquetSource, files: Sequence[Path], fields: Sequence[str]
) -> list[Piece]:
    """Cut files into pieces of PIECE_BYTES or more: JSON lines by bytes, Parquet by row groups, all else whole.

    Files of a `jsonl` source may be Parquet too: what a file is, its first bytes say.

    Raises:
        DataError: a file is nothing that holds rows, or a Parquet file lacks a field of the format.
    """
    sizes = {path: path.stat().st_size for path in files}
    size = max(PIECE_BYTES, math.ceil(sum(sizes.values()) / MOST_PIECES))
    pieces: list[Piece] = []
    for path, total in sizes.items():
        shape = shape_of(path)
        if shape.form == "parquet":
            pieces += _row_groups(name, path, fields, size)
        elif isinstance(source, ParquetSource):
            raise DataError(
                f"data.sources.{name}.paths: {path} is not a Parquet file (it does not begin as one, but as "
                f"{_words(shape)}); set the source's kind to jsonl, or remove it"
            )
        elif shape.can_be_cut:
            count = max(1, round(total / size))
            cuts = [total * i // count for i in range(count + 1)]
            pieces += [Piece(str(path), a, b, b - a) for a, b in pairwise(cuts)]
        else:
            pieces.append(Piece(str(path), 0, total, total, shape.form))
    return pieces


def _words(shape: Shape) -> str:
    form = {"lines": "lines of text", "list": "one JSON list", "object": "one JSON object", "parquet": "Parquet"}
    return ("compressed " if shape.is_packed else "") + form[shape.form]


def _row_groups(name: str, path: Path, fields: Sequence[str], size: int) -> Iterator[Piece]:
    with closing(open_parquet(path)) as file:
        metadata, columns = file.metadata, file.schema_arrow.names
    if missing := [field for field in fields if not has_field(columns, field)]:
        match = closest(missing[0], columns)
        hint = f"; did you mean {match!r}?" if match is not None else ""
        seen = fields_seen(dict.fromkeys(columns))
        raise DataError(f"data.sources.{name}.format: {path} has no field {missing[0]!r}; it has {seen}{hint}")
    start, weight = 0, 0
    for group in range(metadata.num_row_groups):
        weight += metadata.row_group(group).total_byte_size
        if weight >= size or group == metadata.num_row_groups - 1:
            yield Piece(str(path), start, group + 1, weight, "parquet")
            start, weight = group + 1, 0
