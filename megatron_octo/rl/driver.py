"""OpenRLHF as a process of its own: one at a time in a folder, gone when `octo rl` is ended."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from megatron_octo.errors import RuntimeSetupError

_ENDING_SECONDS = 60.0
"""How long OpenRLHF has to take down Ray and vLLM."""


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """A lock on a folder. The driver inherits it, so that it lasts as long as that does, whatever became of `octo rl`.

    Raises:
        RuntimeSetupError: another process trains there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeSetupError(
                f"{folder}: another `octo rl`, or the OpenRLHF that it started, works here; wait for it, or end it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def running(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rl/entry.py` with these options; at the end of the block it is ended with all it started in its group.

    SIGTERM, which is how SLURM ends a job, ends the block too: left to itself it would leave Ray and vLLM behind.
    """
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        with open(log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "megatron_octo.rl.entry", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),
                umask=0o077,  # Ray's logs and the models are the user's own
            )
        try:
            yield process
        finally:
            _end(process)
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would leave it half taken down
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
