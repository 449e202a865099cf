"""Cuts local input files into pieces, one for each task. The cuts depend only on the files, never on the workers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

from megatron_octo.data.rows.files import FileForm, Piece, detect_form
from megatron_octo.data.rows.parquet import open_parquet
from megatron_octo.data.rows.row import fields_seen, has_field
from megatron_octo.errors import DataError, closest
from megatron_octo.recipe.data import JsonlSource, ParquetSource

PIECE_BYTES = 16 << 20
MOST_PIECES = 1024


def pieces_of(
    name: str, source: JsonlSource | ParquetSource, files: Sequence[Path], fields: Sequence[str]
) -> list[Piece]:
    """Cut files into pieces of PIECE_BYTES or more: JSON lines by bytes, Parquet by row groups. Other files stay whole.

    Files of a `jsonl` source may be Parquet too: the first bytes of a file decide what it is.

    Raises:
        DataError: a file is in no format that has rows, or a Parquet file lacks a field of the recipe's format.
    """
    sizes = {path: path.stat().st_size for path in files}
    size = max(PIECE_BYTES, math.ceil(sum(sizes.values()) / MOST_PIECES))
    pieces: list[Piece] = []
    for path, total in sizes.items():
        form = detect_form(path)
        if form.rows == "parquet":
            pieces += _row_groups(name, path, fields, size)
        elif isinstance(source, ParquetSource):
            raise DataError(
                f"data.sources.{name}.paths: {path} is not a Parquet file (it does not begin as one, but as "
                f"{_describe(form)}); set the source's kind to jsonl, or remove it"
            )
        elif form.can_be_cut:
            count = max(1, round(total / size))
            cuts = [total * i // count for i in range(count + 1)]
            pieces += [Piece(str(path), a, b, b - a) for a, b in pairwise(cuts)]
        else:
            pieces.append(Piece(str(path), 0, total, total, form.rows))
    return pieces


def _describe(form: FileForm) -> str:
    rows = {"lines": "lines of text", "list": "one JSON list", "object": "one JSON object", "parquet": "Parquet"}
    return ("compressed " if form.is_compressed else "") + rows[form.rows]


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
