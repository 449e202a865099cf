"""OpenRLHF as a process of its own: one at a time in a folder, and ended when `octo rl` ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.lock import try_lock
from megatron_octo.runtime.rl_folder import RlFolder

_SHUTDOWN_SECONDS = 60.0
"""How long OpenRLHF may take to shut down Ray and vLLM."""


@contextmanager
def locked(folder: RlFolder) -> Iterator[int]:
    """Lock the folder of an RL run. Yields the lock's descriptor.

    OpenRLHF inherits the descriptor, so the folder stays locked until OpenRLHF has ended, even if `octo rl` is killed.

    Raises:
        RuntimeSetupError: another process holds the lock.
    """
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = try_lock(folder.lock)
    if descriptor is None:
        raise RuntimeSetupError(
            f"{folder.root}: another `octo rl`, or the OpenRLHF that it started, works here; wait for it, or end it"
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def openrlhf_process(
    command_line: Sequence[str], folder: RlFolder, environment: Mapping[str, str], lock: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `rl/entry.py` with OpenRLHF's options, and end it with its process group when the block ends.

    SIGTERM, which SLURM sends to end a job, ends the block too. By default it would end this process alone, and leave
    Ray and vLLM running.
    """
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        with open(folder.log, "a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "megatron_octo.rl.entry", *command_line],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),
                umask=0o077,  # keeps Ray's logs and the models private to the user
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM would interrupt the shutdown
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
