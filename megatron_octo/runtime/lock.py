"""File locks (flock): one process at a time. The system releases a lock however the process that holds it ends."""

import fcntl
import os
from pathlib import Path


def try_lock(path: Path, mode: int = 0o644) -> int | None:
    """Lock a file without waiting. The file is made if it is missing; its content does not matter.

    Args:
        mode: permissions of a file that is made here.

    Returns:
        A descriptor that holds the lock until it is closed, here and in every process that inherited it; None where
        another process holds the lock. Processes forked from this one inherit it, commands started by `subprocess`
        only through `pass_fds`.

    Raises:
        OSError: the file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)  # another user's file; to lock it, reading is enough
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
