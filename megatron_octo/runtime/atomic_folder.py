"""Folders that are complete or absent: made in a locked temporary folder, then renamed to their final name."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.files import sync
from megatron_octo.runtime.lock import try_lock

_LOCK = "lock"
_MARGIN = 64 << 20
"""Bytes for everything that is not counted."""


@contextmanager
def temporary_folder_for(target: Path) -> Iterator[Path]:
    """An empty `.<name>.partial-<pid>` next to `target`, removed at the end; `publish_folder` saves what is worth it.

    Folders left by dead processes are removed first. A process is dead if its folder's lock is free: the system
    releases a lock however a process ends, while its process id may be another's by now.

    Raises:
        RuntimeSetupError: another process is making the same folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("partial", "replaced"):
        for stale in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
            _remove_stale(stale, target)
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    # made under a name that no other process clears, and renamed once it is locked
    unlocked = target.with_name(f".{target.name}.unlocked-{os.getpid()}")
    shutil.rmtree(unlocked, ignore_errors=True)
    unlocked.mkdir()
    lock = try_lock(unlocked / _LOCK)
    if lock is None:
        raise RuntimeSetupError(f"{unlocked}: another process has locked it; end that process and try again")
    try:
        unlocked.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def check_target(target: Path, size: int, *, may_replace: bool = False) -> None:
    """Refuse a target that holds something, or a disk with too little room. To be called before the work begins.

    Args:
        size: bytes that will be written there.
        may_replace: accept a folder that holds something.

    Raises:
        RuntimeSetupError: with what is there, or the bytes needed and free.
    """
    if target.is_file() or target.is_symlink():
        raise RuntimeSetupError(f"{target}: this is no folder; give another name, or remove it")
    if not may_replace and target.is_dir() and (present := sorted(entry.name for entry in target.iterdir())):
        shown = ", ".join(present[:4]) + (", ..." if len(present) > 4 else "")
        raise RuntimeSetupError(
            f"{target}: holds something already ({shown}); give another name, or remove the folder yourself"
        )
    above = next(parent for parent in target.absolute().parents if parent.is_dir())
    free, needed = shutil.disk_usage(above).free, size + _MARGIN
    if free < needed:
        raise RuntimeSetupError(
            f"{target}: needs {needed / 1e9:.2f} GB, and {above} has {free / 1e9:.2f} GB free; "
            "make room, or name a folder on another disk"
        )


def publish_folder(folder: Path, target: Path, *, replace: bool) -> None:
    """Rename a finished folder to its final name, and make the rename survive a power cut.

    Args:
        replace: remove what the target holds now; otherwise the target must be absent or an empty folder.

    Raises:
        RuntimeSetupError: `replace` is off, and the target has come to hold something.
    """
    if not replace:
        try:
            folder.rename(target)
        except OSError as error:
            raise RuntimeSetupError(
                f"{target}: something was put there meanwhile ({error.strerror}), so the finished folder is not kept; "
                "give another name"
            ) from None
        sync(target.parent)
        return
    old = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(folder: Path, target: Path) -> None:
    """Remove a folder that no process holds.

    Raises:
        RuntimeSetupError: a process holds it.
    """
    try:
        lock = try_lock(folder / _LOCK)
    except FileNotFoundError:  # another process has just removed the folder
        return
    if lock is None:
        process = folder.name.rpartition("-")[2]
        raise RuntimeSetupError(f"{target.name}: process {process} is making it now ({folder}); wait for it, or end it")
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
