"""Local input files, cut into parts that tasks read. The cut depends on the files alone, never on the workers."""

import difflib
import glob
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

from megatron_octo.data.formats import has_field
from megatron_octo.errors import DataError
from megatron_octo.recipe.data import JsonlSource, ParquetSource

PIECE_BYTES = 16 << 20
MOST_PIECES = 1024
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Piece:
    """A part of a file: a range of bytes of JSON lines, or a range of row groups of Parquet."""

    path: str
    start: int
    end: int
    """Exclusive. A line belongs to the piece it begins in."""
    weight: int
    """Bytes on disk, for the progress bar."""


def input_files(name: str, source: JsonlSource | ParquetSource) -> list[Path]:
    """The files of a source, in the order of its paths, each glob sorted, each file once.

    Raises:
        DataError: a path or a glob matches no file, or a file is empty of bytes or cannot be read.
    """
    found: dict[Path, None] = {}
    for pattern in source.paths:
        found_here = (Path(path) for path in glob.glob(str(Path(pattern).expanduser()), recursive=True))
        matches = sorted(path for path in found_here if path.is_file())
        if not matches:
            raise DataError(f"data.sources.{name}.paths: {pattern!r} matches no file{_nearby(pattern)}")
        found |= dict.fromkeys(matches)
    for path in found:
        if path.stat().st_size == 0:
            raise DataError(f"data.sources.{name}.paths: {path} is empty; take it out of the list")
        if not os.access(path, os.R_OK):
            raise DataError(f"data.sources.{name}.paths: {path} cannot be read; change its permissions")
    return list(found)


def _nearby(pattern: str) -> str:
    folder = Path(pattern).parent
    if glob.has_magic(str(folder)) or not folder.is_dir():
        return f" (seen from {Path.cwd()}); correct the path"
    close = difflib.get_close_matches(Path(pattern).name, [entry.name for entry in folder.iterdir()], n=1)
    return f"; did you mean {str(folder / close[0])!r}?" if close else f" in {folder}; correct the path"


def jsonl_pieces(files: Sequence[Path]) -> list[Piece]:
    """Cut JSON lines into pieces of PIECE_BYTES or more; a compressed file is one piece."""
    sizes = {path: path.stat().st_size for path in files}
    size = max(PIECE_BYTES, math.ceil(sum(sizes.values()) / MOST_PIECES))
    pieces = []
    for path, total in sizes.items():
        if path.suffix in _COMPRESSED:
            pieces.append(Piece(str(path), 0, total, total))
            continue
        count = max(1, round(total / size))
        cuts = [total * i // count for i in range(count + 1)]
        pieces += [Piece(str(path), a, b, b - a) for a, b in pairwise(cuts)]
    return pieces


def parquet_pieces(name: str, files: Sequence[Path], fields: Sequence[str]) -> list[Piece]:
    """Cut Parquet files into runs of row groups.

    Raises:
        DataError: a file is not Parquet, or lacks a field of the format.
    """
    import pyarrow
    import pyarrow.parquet

    size = max(PIECE_BYTES, math.ceil(sum(path.stat().st_size for path in files) / MOST_PIECES))
    pieces = []
    for path in files:
        try:
            metadata = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(f"data.sources.{name}.paths: {path} is not a Parquet file ({error}); remove it") from None
        columns = cast(list[str], metadata.schema.to_arrow_schema().names)
        if missing := [field for field in fields if not has_field(columns, field)]:
            close = difflib.get_close_matches(missing[0], columns, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(columns)}"
            raise DataError(f"data.sources.{name}.format: {path} has no field {missing[0]!r}; {hint}")
        start, weight = 0, 0
        for group in range(metadata.num_row_groups):
            weight += metadata.row_group(group).total_byte_size
            if weight >= size or group == metadata.num_row_groups - 1:
                pieces.append(Piece(str(path), start, group + 1, weight))
                start, weight = group + 1, 0
    return pieces
