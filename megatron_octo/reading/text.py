"""Text files and paths, as users name them."""

import stat
from pathlib import Path

from megatron_octo.errors import OctoError

MOST_BYTES = 64 << 20
"""The largest file that is read, unless the caller has another limit."""


def read_text(path: Path, error: type[OctoError], most_bytes: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Args:
        error: the type to raise.
        most_bytes: a larger file is refused before it is read.

    Raises:
        OctoError: of type `error`, if the file is missing, not a regular file, not readable, too large, or not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{shown_path(path)}: not a regular file; name a file")
        if status.st_size > most_bytes:
            raise error(
                f"{path}: {status.st_size:,} bytes, and at most {most_bytes:,} are read here; is it the right file?"
            )
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)  # it may grow meanwhile
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(f"{shown_path(path)}: cannot be read ({reason}); correct the path or its permissions") from None
    if len(data) > most_bytes:
        raise error(f"{path}: more than {most_bytes:,} bytes, the limit here; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 at byte {problem.start}; save it as UTF-8, or copy it again") from None


def expanded(path: str | Path, error: type[OctoError], key: str = "") -> Path:
    """A path with `~` and `~user` replaced by the home folders.

    Args:
        key: the setting that the path is from, for messages.

    Raises:
        OctoError: of type `error`, if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user; a NUL in the name
        where = f"{key}: " if key else ""
        raise error(
            f"{where}{shown_path(Path(path))}: `~` begins it, and no user of that name has a home folder here; correct "
            "the name, or write the whole path"
        ) from None


def shown_path(path: Path) -> str:
    """A path for a message: shortened if it is very long, with unprintable characters escaped."""
    text = str(path)
    text = text if len(text) <= 200 else f"{text[:150]}...{text[-40:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
