"""JSON lines, whole or the lines that begin in a range of bytes."""

from collections.abc import Iterator
from typing import Any

from megatron_octo.data.rows.json_value import TOO_LONG, is_blank, row_or_reason
from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow
from megatron_octo.data.rows.streams import Stream

_SKIPPED = 1 << 20


class LineRows:
    """The rows of JSON lines. Blank lines are no rows. A row that cannot be read is given as its BadRow."""

    def __init__(self, stream: Stream, start: int, end: int) -> None:
        """Read the lines that begin in [start, end); a packed file is read whole."""
        self._stream, self._start, self._size = stream, start, end - start
        self.number = 0
        """Of the row that was given last, counted from 0; at the end how many lines there were."""
        self.read = 0
        """Bytes of the range that are done (packed, if it is packed)."""

    def __iter__(self) -> Iterator[Any]:
        line = -1
        for line, raw in enumerate(self._lines()):
            if is_blank(raw):
                continue
            self.number = line
            yield BadRow(TOO_LONG) if _is_cut(raw) else row_or_reason(raw)
        self.number = line + 1

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _lines(self) -> Iterator[bytes]:
        """Lines, each at most one byte longer than MOST_ROW_BYTES: then it is only the beginning of one."""
        if self._stream.is_packed:
            while line := self._stream.readline(MOST_ROW_BYTES + 1):
                self._skip_rest(line)
                self.read = self._stream.packed
                yield line
            return
        if self._start:
            # a line is of the range it begins in: step back one byte, so that a line that begins here is kept
            self._stream.seek(self._start - 1)
            self.read = self._skip() - 1
        while self.read < self._size and (line := self._stream.readline(MOST_ROW_BYTES + 1)):
            self.read += len(line) + self._skip_rest(line)
            yield line

    def _skip_rest(self, line: bytes) -> int:
        return self._skip() if _is_cut(line) else 0

    def _skip(self) -> int:
        """Leave out what is left of a line, little by little. Returns how many bytes that were."""
        skipped = 0
        while part := self._stream.readline(_SKIPPED):
            skipped += len(part)
            if part.endswith(b"\n"):
                break
        return skipped


def _is_cut(line: bytes) -> bool:
    return len(line) > MOST_ROW_BYTES and not line.endswith(b"\n")
