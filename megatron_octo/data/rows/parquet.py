"""Rows of Parquet: of each row group only the columns that are asked for."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_octo.data.rows.row import BadRow, columns_of, has_field
from megatron_octo.errors import DataError, first_line
from megatron_octo.reading.text import shown_path

_BATCH = 1024


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`.

    Raises:
        DataError: it is none, or damaged at its end, where Parquet keeps what it is.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        file.schema_arrow.names  # noqa: B018 (decoded here, where it may fail)
        return file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{shown_path(path)} is not a Parquet file ({first_line(error)}); remove it") from None


class ParquetRows:
    """Rows of a range of row groups. One that cannot be read is given as its BadRow."""

    def __init__(self, path: Path, first: int, last: int, weight: int, fields: Sequence[str]) -> None:
        """Read the row groups [first, last)."""
        self._file, self._path, self._groups = open_parquet(path), path, range(first, last)
        self._weight, self._fields = weight, fields
        self.number = 0
        """Of the row that was given last, counted from 0; at the end how many there were."""
        self.read = 0
        """Of the weight."""

    def __iter__(self) -> Iterator[Any]:
        import pyarrow

        total = sum(self._file.metadata.row_group(group).num_rows for group in self._groups)
        there = self._file.schema_arrow.names
        columns = columns_of(there, self._fields)
        # a row without a field that is asked for names the columns there are, as one of JSON does: see `fields_seen`
        lacks_one = not all(has_field(there, field) for field in self._fields)
        number = -1
        try:
            for batch in self._file.iter_batches(_BATCH, row_groups=self._groups, columns=columns):
                for value in rows_of(batch):
                    number += 1
                    self.number = number
                    yield dict.fromkeys(there) | value if lacks_one and isinstance(value, dict) else value
                self.read = self._weight * (number + 1) // max(total, 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{shown_path(self._path)}: damaged ({first_line(error)}); fetch the file again") from None
        if number + 1 != total:
            raise DataError(f"{shown_path(self._path)}: {number + 1:,} rows of {total:,}; fetch the file again")
        self.number = number + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rows_of(batch: Any) -> list[Any]:
    """The rows of a pyarrow record batch. Where one cannot become Python's values, each is tried by itself."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's
        return [_row_of(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row_of(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
    except (ValueError, OverflowError) as error:
        return BadRow(f"a value that cannot be read ({type(error).__name__})")
