"""One training at a time on a stage."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.claims import is_alive, read_claim
from megatron_octo.runtime.files import clear_partial_files

_held: dict[Path, int] = {}
"""Open locks of this process. They end with it and with the writers it forked, however they end."""
DYING_SECONDS = 60.0
"""How long the processes that a killed training left are waited for."""


def hold_stage(folder: Path) -> None:
    """Lock a stage's folder until this process ends. Rank 0 calls it, before anything there is changed.

    What a killed training left is waited for, DYING_SECONDS at most.
    Ranks can outlive a launcher that was killed; two trainings would remove each other's half-written checkpoints.

    Raises:
        RuntimeSetupError: another process trains this stage.
    """
    if folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    running = folder / "running.json"
    deadline = time.monotonic() + DYING_SECONDS
    while not _locks(descriptor):
        # a forked writer of a killed training holds the lock too, until the disk has taken what it was writing
        if time.monotonic() < deadline and _is_dead(running):
            time.sleep(0.1)
            continue
        claim = read_claim(running)
        who = json.dumps(claim) if claim is not None else "(it has not said who it is)"
        os.close(descriptor)
        raise RuntimeSetupError(
            f"{folder}: another process trains this stage: {who}; wait for it, or stop it (SIGTERM saves first)"
        )
    _held[folder] = descriptor
    clear_partial_files(folder)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_dead(running: Path) -> bool:
    """Whether the training that wrote `running.json` ran on this host and has ended."""
    claim = read_claim(running)
    return claim is not None and claim.get("host") == socket.gethostname() and not is_alive(claim)
