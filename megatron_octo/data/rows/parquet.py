"""Rows of Parquet files, of which only the requested columns are read."""

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
        DataError: it is not a Parquet file, or its footer is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        file.schema_arrow.names  # noqa: B018 (decoded here, where an error is handled)
        return file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{shown_path(path)} is not a Parquet file ({first_line(error)}); remove it") from None


class ParquetRows:
    """Rows of a range of row groups. A row that cannot be read is yielded as a BadRow."""

    def __init__(self, path: Path, first: int, last: int, weight: int, fields: Sequence[str]) -> None:
        """Read the row groups [first, last)."""
        self._file, self._path, self._groups = open_parquet(path), path, range(first, last)
        self._weight, self._fields = weight, fields
        self.number = 0
        """Index of the last row; at the end the number of rows."""
        self.progress = 0
        """How much of `weight` was read."""

    def __iter__(self) -> Iterator[Any]:
        import pyarrow

        total = sum(self._file.metadata.row_group(group).num_rows for group in self._groups)
        present = self._file.schema_arrow.names
        columns = columns_of(present, self._fields)
        # if a requested field is missing, rows name all columns, as rows of JSON do: see `fields_seen`
        lacks_one = not all(has_field(present, field) for field in self._fields)
        number = -1
        try:
            for batch in self._file.iter_batches(_BATCH, row_groups=self._groups, columns=columns):
                for value in rows_of(batch):
                    number += 1
                    self.number = number
                    yield dict.fromkeys(present) | value if lacks_one and isinstance(value, dict) else value
                self.progress = self._weight * (number + 1) // max(total, 1)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{shown_path(self._path)}: damaged ({first_line(error)}); download the file again"
            ) from None
        if number + 1 != total:
            raise DataError(f"{shown_path(self._path)}: only {number + 1:,} of {total:,} rows; download the file again")
        self.number = number + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rows_of(batch: Any) -> list[Any]:
    """The rows of a pyarrow record batch. If a row has no Python value, rows are converted one by one."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError):  # text that is not UTF-8, a date beyond Python's range
        return [_row_of(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _row_of(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return BadRow("not UTF-8")
    except (ValueError, OverflowError) as error:
        return BadRow(f"a value that cannot be read ({type(error).__name__})")
