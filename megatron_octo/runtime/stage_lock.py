"""One training at a time on a stage: its lock, and `running.json`, which says who holds it."""

import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.reading.json_text import read_json_object
from megatron_octo.runtime.files import clear_partial_files, write_json_atomically
from megatron_octo.runtime.lock import try_lock
from megatron_octo.runtime.run_folder import RunFolder

_CLOCK_SLACK_SECONDS = 60.0
_DYING_SECONDS = 60.0
"""How long to wait for processes that a killed training left behind."""
_held: dict[Path, int] = {}
"""Locks of this process. A lock lasts until this process and all writers that it forked have ended."""


def hold_stage(run: RunFolder, stage: str) -> None:
    """Lock a stage until this process ends. Rank 0 calls it, before anything in the stage's folder is changed.

    Two trainings would remove each other's unfinished checkpoints. Ranks, and the writers that they forked, can outlive
    a launcher that was killed; this function waits for them, for at most _DYING_SECONDS.

    Raises:
        RuntimeSetupError: another process trains this stage.
    """
    path = run.stage_lock(stage)
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _DYING_SECONDS
    while (descriptor := try_lock(path)) is None:
        claim = read_claim(run.running(stage))
        # a forked writer of a killed training holds the lock too, until its writes are finished
        if time.monotonic() < deadline and claim is not None and _is_dead(claim):
            time.sleep(0.1)
            continue
        holder = json.dumps(claim) if claim is not None else "(it has not said who it is)"
        raise RuntimeSetupError(
            f"{path.parent}: another process trains this stage: {holder}; wait for it, or stop it (SIGTERM saves first)"
        )
    _held[path] = descriptor
    clear_partial_files(path.parent)


def write_claim(path: Path) -> None:
    """Record that this process trains the stage."""
    write_json_atomically(
        path, {"pid": os.getpid(), "host": socket.gethostname(), "started": datetime.now(UTC).isoformat()}
    )


def drop_claim(run: RunFolder, stage: str) -> None:
    """Remove the claim on a stage that this process holds. A claim of another process stays."""
    if run.stage_lock(stage) in _held:
        with suppress(OSError):  # an error here would hide the one that ends the training
            run.running(stage).unlink(missing_ok=True)


def read_claim(path: Path) -> dict[str, Any] | None:
    """The content of `running.json`; None if there is none that can be read."""
    try:
        return read_json_object(path, RuntimeSetupError)
    except RuntimeSetupError:
        return None


def is_alive(claim: dict[str, Any]) -> bool:
    """Whether the process of a claim of this host exists, and is not a later one with the same process id."""
    try:
        process = psutil.Process(int(claim["pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        born = process.create_time()
    except (KeyError, ValueError, TypeError, psutil.NoSuchProcess):
        return False
    try:
        started = datetime.fromisoformat(str(claim["started"])).timestamp()
    except (KeyError, ValueError):
        return True
    return bool(born <= started + _CLOCK_SLACK_SECONDS)


def _is_dead(claim: dict[str, Any]) -> bool:
    return claim.get("host") == socket.gethostname() and not is_alive(claim)
