"""Recognises the format of a file by its first bytes."""

from dataclasses import dataclass
from pathlib import Path

from megatron_octo.errors import DataError
from megatron_octo.reading.text import shown_path

HEAD_BYTES = 512
BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark."""


@dataclass(frozen=True)
class Container:
    """A format that a file can have."""

    name: str
    way_out: str | None = None
    """For a format that is not read: what the user can do. None: it is read."""


TEXT = Container("text")
GZIP = Container("gzip")
ZSTD = Container("Zstandard")
XZ = Container("xz")
BZIP2 = Container("bzip2")
PARQUET = Container("Parquet")
COMPRESSED = (GZIP, ZSTD, XZ, BZIP2)
_SUFFIXES = {".gz": GZIP, ".zst": ZSTD, ".zstd": ZSTD, ".xz": XZ, ".bz2": BZIP2}

_UNPACK = "unpack it, and name the files inside"
_UTF16 = Container("UTF-16 text", "save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`")
_UTF32 = Container("UTF-32 text", "save it as UTF-8, for example with `iconv -f UTF-32 -t UTF-8`")
_CONVERT = "write it as JSON lines or Parquet"
_FETCH = "download the file itself"

# if one mark begins with another, the longer one is first
_MARKS = (
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", ZSTD),
    *((bytes([first]) + b"\x2a\x4d\x18", ZSTD) for first in range(0x50, 0x60)),  # a skippable frame
    (b"\xfd7zXZ\x00", XZ),
    (b"BZh", BZIP2),
    (b"PAR1", PARQUET),
    (b"PARE", Container("encrypted Parquet", "decrypt it")),
    (b"\x04\x22\x4d\x18", Container("LZ4", _UNPACK)),
    (b"\xff\x06\x00\x00sNaPpY", Container("Snappy", _UNPACK)),
    (b"\x89LZO", Container("LZO", _UNPACK)),
    (b"PK\x03\x04", Container("a ZIP archive (or an Office document)", _UNPACK)),
    (b"PK\x05\x06", Container("an empty ZIP archive", _FETCH)),
    (b"7z\xbc\xaf\x27\x1c", Container("a 7-Zip archive", _UNPACK)),
    (b"Rar!", Container("a RAR archive", _UNPACK)),
    # by the byte order mark, or by the zeros next to an opening brace or bracket
    *((mark, _UTF32) for mark in (b"\xff\xfe\0\0", b"\0\0\xfe\xff", b"{\0\0\0", b"[\0\0\0", b"\0\0\0{", b"\0\0\0[")),
    *((mark, _UTF16) for mark in (b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0[")),
    (b"ARROW1", Container("an Arrow file", _CONVERT)),
    (b"\xff\xff\xff\xff", Container("an Arrow stream", _CONVERT)),
    (b"FEA1", Container("a Feather file", _CONVERT)),
    (b"Obj\x01", Container("an Avro file", _CONVERT)),
    (b"ORC", Container("an ORC file", _CONVERT)),
    (b"SQLite format 3\x00", Container("an SQLite database", _CONVERT)),
    (b"\x89HDF\r\n", Container("an HDF5 file", _CONVERT)),
    (b"%PDF-", Container("a PDF document", _CONVERT)),
    (b"version https://git-lfs", Container("a Git LFS pointer, not the data", "run `git lfs pull`")),
)
_TAR = Container("a tar archive", _UNPACK)
_WEB_PAGE = Container("a web page, perhaps an error page that was saved instead of the data", _FETCH)


def container_of(head: bytes) -> Container:
    """The format of a file that begins with these bytes; text if no other is recognised."""
    for mark, container in _MARKS:
        if head.startswith(mark):
            return container
    if head[257:262] == b"ustar":
        return _TAR
    if head[:9].lower() in (b"<!doctype", b"<html>") or head[:5].lower() == b"<html":
        return _WEB_PAGE
    return TEXT


def check_readable(container: Container, path: Path, inside: str = "") -> None:
    """Refuse a format that is not read.

    Args:
        inside: the compression around it, for the message.

    Raises:
        DataError: naming the format.
    """
    if container.way_out is not None:
        raise DataError(f"{shown_path(path)}: {inside}{container.name}, by its first bytes; {container.way_out}")


def check_named(container: Container, head: bytes, path: Path) -> None:
    """Refuse a file whose name says that it is compressed, if it is neither that nor JSON.

    It is JSON if a client has already decompressed it.

    Raises:
        DataError: it is neither.
    """
    named = _SUFFIXES.get(path.suffix)
    if named is None or container is not TEXT or head.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        return
    raise DataError(
        f"{shown_path(path)}: damaged or cut short (not {named.name}, by its first bytes); download the file again"
    )
