"""The entry point: detecting the form of a file of rows, and reading its rows."""

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
"""Largest file of problems (to decontaminate against, to train RL on, to find prompts in), also once decompressed."""

RowsForm = Literal["lines", "list", "object", "parquet"]


@dataclass(frozen=True)
class FileForm:
    """The form of a file of rows."""

    rows: RowsForm
    is_compressed: bool

    @property
    def can_be_cut(self) -> bool:
        """Whether a range of its bytes can be read separately."""
        return self.rows == "lines" and not self.is_compressed


@dataclass(frozen=True)
class Piece:
    """A part of a file: a range of bytes of JSON lines, a range of row groups of Parquet, or a whole file."""

    path: str
    start: int
    end: int
    """Exclusive. A line belongs to the piece that it begins in."""
    weight: int
    """Bytes on disk, for the progress bar."""
    form: RowsForm = "lines"


class Rows(Protocol):
    """Rows of a piece. A row that cannot be read is yielded as a BadRow."""

    number: int
    """Index of the last row (for lines, counting blank ones); at the end the number of rows."""

    @property
    def progress(self) -> int:
        """How much of the piece's weight was read."""

    def __iter__(self) -> Iterator[Any]: ...

    def close(self) -> None:
        """Close the file."""


def detect_form(path: Path) -> FileForm:
    """Detect the form of a file from its beginning.

    Raises:
        DataError: it cannot be opened, or is in a format without rows, which the message names.
    """
    with open_stream(path) as stream:
        if stream.container is PARQUET:
            return FileForm("parquet", False)
        return FileForm(_detect_text_form(stream), stream.is_compressed)


def open_rows(piece: Piece, fields: Sequence[str], most_bytes: int | None = None) -> Rows:
    """The rows of a piece.

    Args:
        fields: the fields that will be used; other columns of Parquet are not read.
        most_bytes: largest size of the file, once decompressed.

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
    """All rows of a file with their numbers from 1 (for JSON lines, the number of the line).

    Raises:
        DataError: it is not a regular file, larger than `most_bytes` (also once decompressed), damaged, cut short, or
            in a format without rows.
    """
    with closing(open_rows(_whole_file(path, most_bytes), fields, most_bytes)) as rows:
        for row in rows:
            yield rows.number + 1, row


def _whole_file(path: Path, most_bytes: int = MOST_SMALL_BYTES) -> Piece:
    """A whole file as one piece.

    Raises:
        DataError: see `read_rows`.
    """
    size = regular_size(path)
    if size > most_bytes:
        raise DataError(
            f"{shown_path(path)}: {size:,} bytes, and at most {most_bytes:,} are read here; is it the right file?"
        )
    form = detect_form(path)
    end = size
    if form.rows == "parquet":
        with closing(open_parquet(path)) as file:
            end = file.metadata.num_row_groups
            decompressed = sum(file.metadata.row_group(group).total_byte_size for group in range(end))
        if decompressed > most_bytes:
            raise DataError(
                f"{shown_path(path)}: {decompressed:,} bytes once decompressed, and at most {most_bytes:,} are read"
            )
    return Piece(str(path), 0, end, size, form.rows)


def regular_size(path: Path) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: there is no such file, or it is a folder or a device.
    """
    try:
        if path.is_dir():
            raise DataError(f"{shown_path(path)}: a folder; name the files in it")
        if not path.exists():
            raise DataError(f"{shown_path(path)}: there is no such file (relative to {Path.cwd()}); correct the path")
        if not path.is_file():
            raise DataError(f"{shown_path(path)}: not a regular file; name a file")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _detect_text_form(stream: Stream) -> RowsForm:
    """A list or an object, if the file is one JSON value on one or several lines; otherwise lines."""
    first = b""
    while is_blank(first):
        first = stream.readline(MOST_ROW_BYTES + 1)
        if not first:
            return "lines"
    start = first.removeprefix(BOM).lstrip()[:1]
    if start not in (b"[", b"{"):
        return "lines"
    form: RowsForm = "list" if start == b"[" else "object"
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
