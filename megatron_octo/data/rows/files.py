"""The way in: what form a file's rows have, and the rows."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_octo.data.rows.containers import BOM, PARQUET
from megatron_octo.data.rows.json_value import is_blank, row_or_reason
from megatron_octo.data.rows.lines import LineRows
from megatron_octo.data.rows.listed import ListRows, ObjectRows, read_whole
from megatron_octo.data.rows.parquet import ParquetRows, open_parquet
from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow
from megatron_octo.data.rows.streams import Stream, open_stream, unreadable
from megatron_octo.errors import DataError
from megatron_octo.reading.text import shown_path

MOST_SMALL_BYTES = 1 << 30
"""Largest file of problems (to decontaminate against, to practise on, to look prompts up in), unpacked too."""

Form = Literal["lines", "list", "object", "parquet"]


@dataclass(frozen=True)
class Shape:
    """What a file of rows is."""

    form: Form
    is_packed: bool

    @property
    def can_be_cut(self) -> bool:
        """Whether a range of its bytes can be read by itself."""
        return self.form == "lines" and not self.is_packed


@dataclass(frozen=True)
class Piece:
    """A part of a file: a range of bytes of JSON lines, a range of row groups of Parquet, or a whole file."""

    path: str
    start: int
    end: int
    """Exclusive. A line belongs to the piece it begins in."""
    weight: int
    """Bytes on disk, for the progress bar."""
    form: Form = "lines"


class Rows(Protocol):
    """Rows that are being read, those that cannot be as their BadRow."""

    number: int
    """Of the row that was given last, counted from 0 (of lines, with the blank ones); at the end how many."""

    @property
    def read(self) -> int:
        """How much of the piece's weight is done."""

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None:
        """Close the file."""


def shape_of(path: Path) -> Shape:
    """Look at a file's beginning.

    Raises:
        DataError: it cannot be opened, or is nothing that holds rows; with what it is.
    """
    with open_stream(path) as stream:
        if stream.container is PARQUET:
            return Shape("parquet", False)
        return Shape(_form_of(stream), stream.is_packed)


def open_rows(piece: Piece, fields: Sequence[str], most_bytes: int | None = None) -> Rows:
    """The rows of a piece.

    Args:
        fields: those that will be asked for; Parquet's other columns are not read.
        most_bytes: of the file once unpacked.

    Raises:
        DataError: the file cannot be opened; while reading, it is damaged or cut short.
    """
    path = Path(piece.path)
    if piece.form == "parquet":
        return ParquetRows(path, piece.start, piece.end, piece.weight, fields)
    stream = open_stream(path, most_bytes)
    if piece.form == "list":
        return ListRows(stream)
    if piece.form == "object":
        return ObjectRows(stream, fields)
    return LineRows(stream, piece.start, piece.end)


def read_rows(path: Path, fields: Sequence[str], most_bytes: int = MOST_SMALL_BYTES) -> Iterator[tuple[int, Any]]:
    """Numbered rows (from 1; of JSON lines, the line) of a file that is read from end to end.

    Raises:
        DataError: it is no regular file, larger than `most_bytes` (unpacked too), damaged, cut short, or nothing that
            holds rows.
    """
    with closing(open_rows(small_piece(path, most_bytes), fields, most_bytes)) as rows:
        for row in rows:
            yield rows.number + 1, row


def small_piece(path: Path, most_bytes: int = MOST_SMALL_BYTES) -> Piece:
    """All of a file, as one piece.

    Raises:
        DataError: as `read_rows`.
    """
    size = regular_size(path)
    if size > most_bytes:
        raise DataError(
            f"{shown_path(path)}: {size:,} bytes, and at most {most_bytes:,} are read here; is it the right file?"
        )
    shape = shape_of(path)
    end = size
    if shape.form == "parquet":
        with closing(open_parquet(path)) as file:
            end = file.metadata.num_row_groups
            unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(end))
        if unpacked > most_bytes:
            raise DataError(
                f"{shown_path(path)}: {unpacked:,} bytes once unpacked, and at most {most_bytes:,} are read"
            )
    return Piece(str(path), 0, end, size, shape.form)


def regular_size(path: Path) -> int:
    """Bytes of a file.

    Raises:
        DataError: there is none, or it is a folder or a device.
    """
    try:
        if path.is_dir():
            raise DataError(f"{shown_path(path)}: a folder; name the files in it")
        if not path.exists():
            raise DataError(f"{shown_path(path)}: there is no such file (seen from {Path.cwd()}); correct the path")
        if not path.is_file():
            raise DataError(f"{shown_path(path)}: not a regular file; name a file")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _form_of(stream: Stream) -> Form:
    """One JSON value over several lines, or alone on its line, is a list or an object; all else is lines."""
    first = b""
    while is_blank(first):
        first = stream.readline(MOST_ROW_BYTES + 1)
        if not first:
            return "lines"
    start = first.removeprefix(BOM).lstrip()[:1]
    if start not in (b"[", b"{"):
        return "lines"
    form: Form = "list" if start == b"[" else "object"
    if len(first) > MOST_ROW_BYTES:
        return "list" if form == "list" else "lines"
    if _is_json(first):
        return "lines" if _has_more(stream) else form
    if form == "list":
        return form
    rest = read_whole(stream)
    return form if rest is not None and _is_json(first + rest) else "lines"


def _is_json(raw: bytes) -> bool:
    return not isinstance(row_or_reason(raw), BadRow)


def _has_more(stream: Stream) -> bool:
    while line := stream.readline(MOST_ROW_BYTES):
        if line.strip():
            return True
    return False
