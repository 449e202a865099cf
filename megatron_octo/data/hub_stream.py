"""Ensures that files streamed from the hub are read to their end.

huggingface_hub treats a response that ends early without an error (no Content-Length, a proxy that gave up) as the end
of the file. With JSON lines, the corpus would silently be shorter. The replacements here compare the position with the
size that the hub states, and resume reading where the connection broke.
"""

import time

import httpx
from huggingface_hub import hf_file_system

from megatron_octo.errors import DataError

RETRY_WAITS = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds to wait before each retry that follows a try without a new byte."""


def install_size_checks() -> None:
    """Make this process's hub client compare sizes. Safe to call again."""
    hf_file_system.HfFileSystemStreamFile = CompleteStream  # type: ignore[misc]
    hf_file_system.HfFileSystemFile = CompleteRanges  # type: ignore[misc]


class CompleteStream(hf_file_system.HfFileSystemStreamFile):
    """A file of the hub that is read sequentially."""

    _stated: int | None = None

    def read(self, length: int = -1) -> bytes:
        """The next bytes; none only at the size that the hub states.

        Raises:
            DataError: the connection yields no more bytes after all retries.
        """
        out, tries, why = b"", 0, "the connection ended early"
        while True:
            before = self.loc
            try:
                out += super().read(length if length < 0 else length - len(out))
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if 0 <= length <= len(out) or (self._size is not None and self.loc >= self._size):
                return out
            if self._size is None and self.loc == before and why == "the connection ended early":
                return out
            tries = 0 if self.loc > before else tries + 1
            if tries > len(RETRY_WAITS):
                raise DataError(
                    f"{self.path}: received {self.loc:,} of {self._size or 0:,} bytes, then no more in {tries} tries "
                    f"({why}); check the network, and run the same command again"
                )
            if tries:
                time.sleep(RETRY_WAITS[tries - 1])
            self._reopen()

    @property
    def _size(self) -> int | None:
        if self._stated is None:
            self._stated = self.fs.info(self.resolved_path.unresolve()).get("size")
        return self._stated

    def _reopen(self) -> None:
        if self.response is not None:
            self.response.close()
        try:
            self._open_connection()  # type: ignore[no-untyped-call]
        except httpx.TransportError:  # the next read opens it again and reports an error
            self.response = None


class CompleteRanges(hf_file_system.HfFileSystemFile):
    """A file of the hub that is read in ranges, as Parquet is."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data, why = b"", "the connection ended early"
        for wait in RETRY_WAITS:
            time.sleep(wait)
            try:
                data = bytes(super()._fetch_range(start, end))
            except (httpx.NetworkError, httpx.TimeoutException) as error:  # huggingface_hub has already retried
                why = str(error) or type(error).__name__
                break
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if len(data) == end - start:
                return data
        raise DataError(
            f"{self.path}: received {len(data):,} of {end - start:,} bytes ({why}); check the network, and run "
            "the same command again"
        )
