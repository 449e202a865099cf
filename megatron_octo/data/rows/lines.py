"""JSON lines: a whole file, or the lines that begin in a range of bytes."""

from collections.abc import Iterator
from typing import Any

from megatron_octo.data.rows.json_value import TOO_LONG, is_blank, row_or_reason
from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow
from megatron_octo.data.rows.streams import Stream

_SKIPPED = 1 << 20


class LineRows:
    """The rows of JSON lines, without blank lines. A row that cannot be read is yielded as a BadRow."""

    def __init__(self, stream: Stream, start: int, end: int) -> None:
        """Read the lines that begin in [start, end); a compressed file is always read whole."""
        self._stream, self._start, self._size = stream, start, end - start
        self.number = 0
        """The line of the last row, counted from 0; at the end the number of lines."""
        self.progress = 0
        """Bytes of the range that were read, in the file as it is stored."""

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
        """Lines, each cut after MOST_ROW_BYTES + 1 bytes."""
        if self._stream.is_compressed:
            while line := self._stream.readline(MOST_ROW_BYTES + 1):
                self._skip_rest(line)
                self.progress = self._stream.position
                yield line
            return
        if self._start:
            # a line belongs to the range it begins in: step back one byte, so that a line that begins here is kept
            self._stream.seek(self._start - 1)
            self.progress = self._skip() - 1
        while self.progress < self._size and (line := self._stream.readline(MOST_ROW_BYTES + 1)):
            self.progress += len(line) + self._skip_rest(line)
            yield line

    def _skip_rest(self, line: bytes) -> int:
        return self._skip() if _is_cut(line) else 0

    def _skip(self) -> int:
        """Skip the rest of a line in small reads. Returns the number of bytes skipped."""
        skipped = 0
        while part := self._stream.readline(_SKIPPED):
            skipped += len(part)
            if part.endswith(b"\n"):
                break
        return skipped


def _is_cut(line: bytes) -> bool:
    return len(line) > MOST_ROW_BYTES and not line.endswith(b"\n")
