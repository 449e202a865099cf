"""One training at a time on a stage."""

import fcntl
import os
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError

_held: dict[Path, int] = {}
"""Open locks of this process. They end with it, however it ends."""


def hold_stage(folder: Path) -> None:
    """Lock a stage's folder until this process ends. Rank 0 calls it, before anything there is changed.

    Ranks can outlive a launcher that was killed; two trainings would remove each other's half-written checkpoints.

    Raises:
        RuntimeSetupError: another process trains this stage.
    """
    if folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        running = folder / "running.json"
        who = " ".join(running.read_text().split()) if running.is_file() else "(it has not said who it is)"
        os.close(descriptor)
        raise RuntimeSetupError(
            f"{folder}: another process trains this stage: {who}; wait for it, or stop it (SIGTERM saves first)"
        ) from None
    _held[folder] = descriptor
