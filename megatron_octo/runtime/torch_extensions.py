"""Keeps the cache of extensions that PyTorch compiles at run time free of locks that a killed build left behind.

PyTorch's builds exclude each other by a file named `lock`. A build that is killed leaves it behind, and every later
build then waits for it silently and forever. DeepSpeed compiles its CPU collectives this way.
"""

import contextlib
import socket
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "TORCH_EXTENSIONS_DIR"


def use_own_extensions(environment: MutableMapping[str, str]) -> None:
    """Set a cache that belongs to this user and host, and remove the locks in it that no process holds.

    The host is part of the path because home folders can be shared, and the processes of other hosts are not visible. A
    folder that the user has set is not changed.
    """
    if VARIABLE in environment:
        return
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "megatron_octo" / "torch_extensions" / socket.gethostname()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment[VARIABLE] = str(folder)
    remove_abandoned_locks(folder)


def remove_abandoned_locks(folder: Path) -> list[Path]:
    """Remove the locks below a folder that no process of this user on this host has open. Returns their paths."""
    locks = [path for path in folder.rglob("lock") if path.is_file()]
    held = _open_files() if locks else set()
    abandoned = []
    for path in locks:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) not in held:
                path.unlink()
                abandoned.append(path)
    return abandoned


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of every file that a process of this user has open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    stat = descriptor.stat()
                    found.add((stat.st_dev, stat.st_ino))
    return found
