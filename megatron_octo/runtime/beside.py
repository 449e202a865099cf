"""The folder that long work is done in: beside the final one, locked by its process, gone or renamed at the end."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.files import sync

_LOCK = "lock"


@contextmanager
def folder_beside(final: Path) -> Iterator[Path]:
    """An empty `.<name>.partial-<pid>` beside `final`, removed at the end; `put_in_place` takes what is worth keeping.

    Folders left by processes that are gone are removed first. Whether one is gone is told by its lock, which the
    system lets go however a process ends, rather than by its number, which may be another's by now.

    Raises:
        RuntimeSetupError: another process is making the same folder.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("partial", "replaced"):
        for stale in final.parent.glob(f".{glob.escape(final.name)}.{kind}-*"):
            _remove_stale(stale, final)
    folder = final.with_name(f".{final.name}.partial-{os.getpid()}")
    # under a name that nobody clears until it is locked
    unlocked = final.with_name(f".{final.name}.unlocked-{os.getpid()}")
    shutil.rmtree(unlocked, ignore_errors=True)
    unlocked.mkdir()
    with open(unlocked / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, final: Path) -> None:
    """Rename a finished folder to its final name; what stood there is removed."""
    old = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    if final.exists():
        os.replace(final, old)
    os.replace(folder, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def put_in_new_place(folder: Path, final: Path) -> None:
    """Rename a finished folder to its final name, where nothing may stand but an empty folder.

    Raises:
        RuntimeSetupError: something came to stand there meanwhile.
    """
    try:
        folder.rename(final)
    except OSError as error:
        raise RuntimeSetupError(
            f"{final}: something came to stand there meanwhile ({error.strerror}), so what was made is not kept; give "
            "another name"
        ) from None
    sync(final.parent)


def _remove_stale(folder: Path, final: Path) -> None:
    try:
        with open(folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        process = folder.name.rpartition("-")[2]
        raise RuntimeSetupError(
            f"{final.name}: process {process} is making it now ({folder}); wait for it, or end it"
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
