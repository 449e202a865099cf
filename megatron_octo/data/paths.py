"""Resolves the paths and globs of a source to local files."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_octo.errors import DataError, closest
from megatron_octo.reading.text import expanded, shown_path


def input_files(key: str, patterns: Sequence[str]) -> list[Path]:
    """The files of paths and globs in the given order, each glob sorted, each file once.

    Args:
        key: the setting that holds them, for messages.

    Raises:
        DataError: a path or a glob matches no file, or a file has no bytes or cannot be read.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            found |= dict.fromkeys(_matches(key, pattern))
        except (OSError, ValueError) as error:  # a name that is too long, a folder without permission
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"{key}: {shown_path(Path(pattern))} cannot be searched ({reason}); correct the path"
            ) from None
    for path in found:
        if not _is_unicode(path):
            raise DataError(f"{key}: {shown_path(path)}: its name is not UTF-8, as a manifest must be; rename it")
        if path.stat().st_size == 0:
            raise DataError(f"{key}: {path} is empty; remove it from the list")
        if not os.access(path, os.R_OK):
            raise DataError(f"{key}: {path} cannot be read; change its permissions")
    return list(found)


def _is_unicode(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _matches(key: str, pattern: str) -> list[Path]:
    path = expanded(pattern, DataError, key)
    if path.is_dir():
        raise DataError(f"{key}: {shown_path(path)} is a folder; name the files in it, for example {str(path / '*')!r}")
    matches = sorted(path for path in map(Path, glob.glob(_as_glob(path), recursive=True)) if path.is_file())
    if not matches:
        raise DataError(f"{key}: '{shown_path(Path(pattern))}' matches no file{_nearby(path)}")
    return matches


def _as_glob(path: Path) -> str:
    """The path as a glob. The part of it that exists literally is taken literally: `part[1].jsonl`, if that exists."""
    for existing in (path, *path.parents):
        if existing.exists():
            rest = path.relative_to(existing)
            return glob.escape(str(existing)) if existing == path else str(Path(glob.escape(str(existing))) / rest)
    return str(path)


def _nearby(path: Path) -> str:
    folder = path.parent
    if glob.has_magic(str(folder)) or not folder.is_dir():
        return f" (relative to {Path.cwd()}); correct the path"
    match = closest(path.name, [entry.name for entry in folder.iterdir()])
    return f"; did you mean {str(folder / match)!r}?" if match is not None else f" in {folder}; correct the path"
