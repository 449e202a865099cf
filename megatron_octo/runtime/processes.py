"""Helper processes that end when the process that started them does, however that comes about."""

import os
import threading
import time

_POLL_SECONDS = 0.5


def leave_with(parent: int) -> None:
    """End this process once `parent`, the process that started it, is gone. Returns at once."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)
