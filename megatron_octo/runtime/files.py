"""Files that are complete or absent (written under a temporary name, flushed, renamed), and their hashes."""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

_BLOCK = 1 << 22


_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?:(?P<host>[^.]*)-)?(?P<pid>\d+)\.partial")
_STALE_SECONDS = 24 * 3600.0
"""A partial file of another host that is older than this is assumed to be abandoned."""


def write_text_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` in UTF-8; a reader sees the old file or the new one, never a part."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`; a reader sees the old file or the new one, never a part.

    Partial files that interrupted calls for the same path left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_partial_files(path.parent, path.name)
    partial = path.with_name(f".{path.name}.{_host()}-{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def clear_partial_files(folder: Path, name: str | None = None) -> list[str]:
    """Remove partial files whose process has ended. Returns their names.

    Args:
        name: only those of this file. None: those of every file in the folder.
    """
    removed = []
    for entry in folder.iterdir():
        found = _PARTIAL.fullmatch(entry.name)
        if found and name in (None, found["name"]) and _is_abandoned(entry, found["host"], int(found["pid"])):
            entry.unlink(missing_ok=True)
            removed.append(entry.name)
    return removed


def _is_abandoned(entry: Path, host: str | None, pid: int) -> bool:
    if host in (None, _host()):
        return not psutil.pid_exists(pid)
    try:
        return time.time() - entry.stat().st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def write_json_atomically(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON, complete or not at all."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flush a file to disk. Flushing a folder makes the renames in it survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file as hexadecimal text. `on_bytes` is called with the size of every block (for a progress bar)."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if on_bytes is not None:
                on_bytes(len(block))
    return digest.hexdigest()


def sha256_of_all(paths: Sequence[Path], on_bytes: Callable[[int], None] | None = None) -> list[str]:
    """SHA-256 of files, on as many threads as there are cores (hashing releases the GIL)."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda path: sha256_of(path, on_bytes), paths))


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces), used as a fingerprint of settings."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
