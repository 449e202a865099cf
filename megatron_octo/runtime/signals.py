"""Signals that ask a process to stop: recorded from its start on, and blocked in its helper processes.

SIGTERM (the job is ended), SIGINT (Ctrl-C), SIGHUP (the terminal was closed) and SIGUSR1 (SLURM's warning before the
time limit) all mean: finish the step, save, stop. They can arrive more than once and at any time.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_POLL_SECONDS = 0.5


class StopRequest:
    """Records the stop signals of this process. Made by `listen_for_stop`."""

    def __init__(self) -> None:
        self.received: list[int] = []
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup asked for that
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received.append(number)

    def requested(self) -> bool:
        """Whether a stop signal has arrived."""
        return bool(self.received)

    def follow(self, parent: int) -> None:
        """Treat the end of `parent`, the launcher, as a stop signal, so that an orphaned rank saves and stops."""
        _call_when_gone(parent, lambda: self.received.append(signal.SIGHUP))

    def ignore_others(self) -> None:
        """Ignore stop signals from now on. To be called once everything is saved.

        Python restores the default handlers as it ends. A signal that arrived then would kill a process that is
        finished, and its job would fail instead of being requeued.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


_request: StopRequest | None = None


def listen_for_stop() -> StopRequest:
    """The stop request of this process, which records signals from the first call on. Main thread only."""
    global _request
    if _request is None:
        _request = StopRequest()
    return _request


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals while the body runs; they are delivered at its end.

    A process that is started inside starts with them blocked. A rank misses none until it calls `listen_for_stop`, and
    a helper, which never calls it, ignores signals to the whole process group.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent(parent: int) -> None:
    """End this helper process once `parent`, the process that started it, has ended in any way. Returns at once."""
    _call_when_gone(parent, lambda: os._exit(1))


def _call_when_gone(parent: int, call: Callable[[], None]) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        call()

    threading.Thread(target=watch, daemon=True).start()
