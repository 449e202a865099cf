"""The bytes of a file, decompressed if necessary. A damaged or truncated file always raises an error."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import zstandard

from megatron_octo.data.rows.containers import (
    BZIP2,
    COMPRESSED,
    GZIP,
    HEAD_BYTES,
    XZ,
    Container,
    check_named,
    check_readable,
    container_of,
)
from megatron_octo.errors import DataError
from megatron_octo.reading.text import shown_path

MOST_WINDOW_BYTES = 1 << 31
"""Largest Zstandard window: that of `zstd --long=31`, the maximum of its 64-bit builds."""
_XZ_MEMORY = 1 << 30
_COMPRESSED_BYTES = 8 << 10
"""Compressed bytes that are read at a time. 8 KiB of Zstandard decompress to 256 MiB at most; for xz and bzip2 the
output is limited separately."""
_BUFFER = 1 << 20
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class Stream:
    """An open file that is read from its beginning to its end."""

    def __init__(self, path: Path, container: Container, raw: IO[bytes], most_bytes: int | None = None) -> None:
        self.path, self.container, self._raw, self._most, self._returned = path, container, raw, most_bytes, 0
        self.file: IO[bytes] = _decompressed(container, raw)

    @property
    def is_compressed(self) -> bool:
        return self.container in COMPRESSED

    @property
    def position(self) -> int:
        """Bytes of the stored file that were read, for progress bars."""
        return self._raw.tell()

    def readline(self, most: int) -> bytes:
        """A line with its end, or its first `most` bytes."""
        try:
            data = self.file.readline(most)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None
        return data if self._most is None else self._counted(data)

    def read(self, most: int) -> bytes:
        """The next `most` bytes, fewer only at the end."""
        try:
            data = self.file.read(most)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None
        return data if self._most is None else self._counted(data)

    def peek(self) -> bytes:
        """The next bytes of a compressed file, up to HEAD_BYTES, without consuming them."""
        try:
            return self.file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined,no-any-return]
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None

    def _counted(self, data: bytes) -> bytes:
        self._returned += len(data)
        if self._most is not None and self._returned > self._most:
            raise DataError(
                f"{shown_path(self.path)}: more than {self._most:,} bytes once decompressed; is it the right file?"
            )
        return data

    def seek(self, position: int) -> None:
        """Go to a byte of a file that is not compressed."""
        self.file.seek(position)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self._raw.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_stream(path: Path, most_bytes: int | None = None) -> Stream:
    """Open a file. Parquet is opened as plain bytes.

    Args:
        most_bytes: reading more than this, after decompression, raises DataError.

    Raises:
        DataError: it cannot be opened, or its first bytes are those of a format that is not read. Reading raises it if
            compressed data is damaged, cut short, or followed by something else.
    """
    try:
        raw = open(path, "rb", buffering=_BUFFER)  # noqa: SIM115 (closed by the stream)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    try:
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        container = container_of(head)
        check_readable(container, path)
        check_named(container, head, path)
        stream = Stream(path, container, raw, most_bytes)
        if stream.is_compressed:
            _check_inside(stream)
    except OSError as error:
        raw.close()
        raise unreadable(path, error) from None
    except BaseException:
        raw.close()
        raise
    return stream


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that the operating system cannot read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return DataError(f"{shown_path(path)}: cannot be read ({reason}); correct the path or its permissions")


def _check_inside(stream: Stream) -> None:
    container = container_of(stream.peek())
    packing = f"{stream.container.name} of "
    check_readable(container, stream.path, packing)
    if container in COMPRESSED or container.name == "Parquet":
        raise DataError(f"{shown_path(stream.path)}: {packing}{container.name}, by its first bytes; decompress it once")


def _damaged(path: Path, error: Exception) -> DataError:
    if "too much memory" in str(error) or "Memory usage limit" in str(error):
        return DataError(
            f"{shown_path(path)}: decompression needs a larger window than {MOST_WINDOW_BYTES >> 20:,} MiB (xz: "
            f"{_XZ_MEMORY >> 20:,} MiB of memory); compress it again with a smaller one"
        )
    return DataError(f"{shown_path(path)}: damaged or cut short ({error}); download the file again")


def _decompressed(container: Container, raw: IO[bytes]) -> IO[bytes]:
    if container not in COMPRESSED:
        return raw
    if container is GZIP:
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER)
    new: Callable[[], Any]
    if container is XZ:
        new = lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)  # noqa: E731
    elif container is BZIP2:
        new = bz2.BZ2Decompressor
    else:
        new = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES).decompressobj
    return io.BufferedReader(_Frames(raw, new, container.name), _BUFFER)


class _Frames(io.RawIOBase):
    """Decompresses consecutive frames.

    The libraries' own readers treat a frame that is cut short, or garbage after a frame, as the end of the file.
    """

    def __init__(self, raw: IO[bytes], new: Callable[[], Any], name: str) -> None:
        self._raw, self._new, self._name = raw, new, name
        self._frame: Any = None
        self._rest = b""
        """Bytes of the file that belong to no frame yet."""
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            if not self._advance():
                return 0
        count = min(len(buffer), len(self._out))
        buffer[:count] = self._out[:count]
        self._out = self._out[count:]
        return count

    def _advance(self) -> bool:
        """Decompress some more; False at the proper end of the file."""
        if self._frame is None and not self._begin():
            return False
        needs_input = getattr(self._frame, "needs_input", True)
        data = (self._rest or self._raw.read(_COMPRESSED_BYTES)) if needs_input else b""
        self._rest = b""
        if needs_input and not data:
            raise EOFError(f"the file ends in the middle of its {self._name}")
        bounded = hasattr(self._frame, "needs_input")
        output = self._frame.decompress(data, _BUFFER) if bounded else self._frame.decompress(data)
        self._out = memoryview(output)
        if self._frame.eof:
            self._rest, self._frame = self._frame.unused_data, None
        return True

    def _begin(self) -> bool:
        """Begin the next frame; False if there is none. Zeros after a frame are padding."""
        while not self._rest.lstrip(b"\0"):
            self._rest = self._raw.read(_COMPRESSED_BYTES)
            if not self._rest:
                return False
        if not self._rest.startswith(b"\0"):
            self._frame = self._new()
            return True
        self._rest = self._rest.lstrip(b"\0")
        return self._begin()
