"""The ranks of a stage on this machine: starting, watching, stopping and ending them together.

torchrun does this on clusters. On one machine it would listen on all interfaces, unpickle the content of its store,
send signals to a rank's helper processes too, and not say which rank was killed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.runtime.failures import VARIABLE, RankFiles
from megatron_octo.runtime.loopback import stay_on_loopback
from megatron_octo.runtime.signals import STOP_SIGNALS, stop_signals_blocked

SAVE_SECONDS = 1800.0
"""Time that ranks have for their step and their checkpoint after a stop signal."""
_SECONDS_AFTER_FAILURE = 15.0
"""Time that the other ranks have to end and to report why, after one rank has failed."""
_POLL_SECONDS = 0.05
_AGAIN = "run the same command again: it resumes from the last checkpoint"


def run_as_local_ranks(command: Sequence[str], world_size: int) -> int:
    """Run a command as `world_size` ranks. Returns the exit status: 0, a rank's own, or 128 plus a signal number.

    A stop signal to this process is forwarded to every rank, which saves and ends. Ranks print where this process
    prints. They meet in a file in a folder that only this user can read.
    """
    with _private_folder() as folder, _Forwarding() as forwarding:
        with stop_signals_blocked():
            ranks = [_Rank.start(command, number, world_size, Path(folder)) for number in range(world_size)]
        try:
            _watch(ranks, forwarding)
        finally:
            for rank in ranks:
                rank.kill()
        return _status(ranks, forwarding)


def _private_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="octo-ranks-")
    except OSError as error:
        raise RuntimeSetupError(
            f"no temporary folder can be made ({error.strerror or error}); make room, or set TMPDIR to another place"
        ) from None


@dataclass
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    files: RankFiles
    was_killed_here: bool = False

    @classmethod
    def start(cls, command: Sequence[str], number: int, world_size: int, folder: Path) -> "_Rank":
        environment = os.environ | {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(world_size),
            VARIABLE: str(folder),
        }
        stay_on_loopback(environment)
        # a session of its own, so that signals from the terminal reach a rank only through the launcher
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        return cls(number, process, RankFiles(folder, number))

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal. None: it is running."""
        return self.process.poll()

    def send(self, number: int) -> None:
        if self.status is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with everything in its process group."""
        if self.status is None:
            self.was_killed_here = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class _Forwarding:
    """Collects the stop signals of this process inside its block, instead of being ended by them.

    After the first signal, all signals are ignored until the process ends. Otherwise Python would restore the default
    handlers as it ends, and the exit status would be that of a late signal.
    """

    waiting: list[int] = field(default_factory=list)
    first: int | None = None

    def __enter__(self) -> "_Forwarding":
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, before in self._before.items():
            if not (number == signal.SIGHUP and before == signal.SIG_IGN):  # nohup
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if self.first is None else signal.SIG_IGN)

    def _note(self, number: int, frame: object) -> None:
        del frame
        self.first = self.first or number
        self.waiting.append(number)

    def send_to(self, ranks: Sequence[_Rank]) -> None:
        while self.waiting:
            number = self.waiting.pop(0)
            for rank in ranks:
                rank.send(number)


def _watch(ranks: Sequence[_Rank], forwarding: _Forwarding) -> None:
    """Return when all ranks have ended, or when the others must be killed."""
    deadline: float | None = None
    failed = False
    while any(rank.status is None for rank in ranks):
        if forwarding.waiting and deadline is None:
            deadline = time.monotonic() + SAVE_SECONDS
        forwarding.send_to(ranks)
        if not failed and any(rank.status for rank in ranks):
            failed, deadline = True, time.monotonic() + _SECONDS_AFTER_FAILURE
        if deadline is None and any(rank.status == 0 for rank in ranks):
            deadline = time.monotonic() + SAVE_SECONDS  # the other ranks should end at about the same time
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def _status(ranks: Sequence[_Rank], forwarding: _Forwarding) -> int:
    """Print what went wrong first, and return the exit status."""
    failures = {rank.number: rank.files.read_failure() for rank in ranks}
    killed = [rank for rank in ranks if (rank.status or 0) < 0 and not rank.was_killed_here]
    if killed:
        _say("\n".join(_killed(rank) for rank in killed))
        return 128 - (killed[0].status or 0)
    reported = [failure for failure in failures.values() if failure is not None]
    if messages := [failure for failure in reported if failure.is_message]:
        _say(messages[0].text)
        return messages[0].exit_code
    if any(rank.status for rank in ranks) and any(_read(rank.files.stacks) for rank in ranks):
        _say(_hang(ranks))
        return 1
    if reported:
        first = min(reported, key=lambda failure: failure.at)
        number = next(number for number, failure in failures.items() if failure is first)
        print(f"{first.text}octo: rank {number} failed; {_AGAIN}", file=sys.stderr, flush=True)
        return first.exit_code
    if ended := [rank for rank in ranks if rank.status and not rank.was_killed_here]:
        _say(f"rank {ended[0].number} ended with status {ended[0].status} without a reason; {_AGAIN}")
        return ended[0].status or 1
    if late := [str(rank.number) for rank in ranks if rank.was_killed_here]:
        _say(f"rank {', '.join(late)} did not end within {SAVE_SECONDS:.0f} s and was killed; {_AGAIN}")
        return 1 if forwarding.first is None else 128 + forwarding.first
    return 0 if forwarding.first is None else 128 + forwarding.first


def _killed(rank: _Rank) -> str:
    number = -(rank.status or 0)
    name = signal.Signals(number).name
    why = " (the kernel does that to the largest process when memory runs out)" if number == signal.SIGKILL else ""
    return f"rank {rank.number} (process {rank.process.pid}) was killed by {name}{why}; {_AGAIN}"


def _hang(ranks: Sequence[_Rank]) -> str:
    shown = [
        f"rank {rank.number}: {_read(rank.files.stacks).strip() or 'no stack: the process did not run, or was stopped'}"
        for rank in ranks
    ]
    return (
        "a step took longer than its limit, so the ranks were killed; stacks of all threads, innermost call first:\n"
        + "\n".join(shown)
        + f"\nocto: hung; {_AGAIN}. If steps may take this long, raise train.guards.hang_seconds"
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _say(text: str) -> None:
    print(f"octo: {text}", file=sys.stderr, flush=True)
