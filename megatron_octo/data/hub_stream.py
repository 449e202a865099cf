"""Files of the hub are read to their end, or not at all.

huggingface_hub takes an answer that ends early without an error (no Content-Length, a proxy that gave up) for the end
of the file. Of JSON lines that is a shorter corpus, without a word. Here the size that the hub states is compared, and
reading goes on from where it broke off.
"""

import time

import httpx
from huggingface_hub import hf_file_system

from megatron_octo.errors import DataError

WAITS = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds before each further try without a byte more."""


def check_ends() -> None:
    """Make this process's hub client compare sizes. Calling it again changes nothing."""
    hf_file_system.HfFileSystemStreamFile = WholeStream  # type: ignore[misc]
    hf_file_system.HfFileSystemFile = WholeRanges  # type: ignore[misc]


class WholeStream(hf_file_system.HfFileSystemStreamFile):
    """A file that is read from its beginning to its end."""

    _stated: int | None = None

    def read(self, length: int = -1) -> bytes:
        """The next bytes; none only at the end that the hub states.

        Raises:
            DataError: the connection gives no more, however often it is tried.
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
            if tries > len(WAITS):
                raise DataError(
                    f"{self.path}: {self.loc:,} bytes of {self._size or 0:,} came, then no more in {tries} tries "
                    f"({why}); check the network, and run the same command again"
                )
            if tries:
                time.sleep(WAITS[tries - 1])
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
        except httpx.TransportError:  # the next read opens it again, and says so
            self.response = None


class WholeRanges(hf_file_system.HfFileSystemFile):
    """A file that is read by ranges, as Parquet is."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data, why = b"", "the connection ended early"
        for wait in WAITS:
            time.sleep(wait)
            try:
                data = bytes(super()._fetch_range(start, end))
            except (httpx.NetworkError, httpx.TimeoutException) as error:  # huggingface_hub has tried often enough
                why = str(error) or type(error).__name__
                break
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if len(data) == end - start:
                return data
        raise DataError(
            f"{self.path}: {len(data):,} bytes came of {end - start:,} asked for ({why}); check the network, and run "
            "the same command again"
        )
