"""`octo train` as a process that a test watches, signals and looks into."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_octo.runtime.checkpoints import complete_steps
from tests.support import MINI, lines

SECONDS = 120
LAYOUT = ("parallel.pipeline=2", "stages.stable.tokens=1M")
"""Two ranks, and more steps than a test waits for."""


HEARS_SIGNALS = ("env", "--default-signal=HUP,INT")
"""Undoes what nohup and a shell's `&` have done to the tests: a signal that is ignored stays so in all they start."""


class Training:
    """A running `octo train mini stable`."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.folder, self.process, self.log = folder, process, log
        self.stage = folder / "runs/mini/stages/stable"
        self.checkpoints = self.stage / "checkpoints"

    def wait_for(self, what: Callable[[], object]) -> None:
        """Until it is so; an error where the process ends before."""
        end = time.monotonic() + SECONDS
        while not what():
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        metrics = self.stage / "metrics.jsonl"
        self.wait_for(lambda: metrics.is_file() and len(lines_whole(metrics)) >= step)

    def wait_for_save(self, count: int = 1) -> None:
        self.wait_for(lambda: len(complete_steps(self.checkpoints)) >= count)

    def ranks(self) -> list[psutil.Process]:
        """The ranks, by number; none before they say who they are."""
        found = {}
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                if "train.worker" in " ".join(child.cmdline()):
                    found[int(child.environ()["RANK"])] = child
        return [found[number] for number in sorted(found)]

    def everything(self) -> list[psutil.Process]:
        """The launcher and all below it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def end(self) -> int:
        """The exit status, once it ends by itself."""
        return self.process.wait(SECONDS)

    @property
    def said(self) -> str:
        """All it has printed."""
        return self.log.read_text()

    @property
    def steps(self) -> list[int]:
        """Steps in metrics.jsonl."""
        return [record["step"] for record in lines(self.stage / "metrics.jsonl")]


def lines_whole(path: Path) -> list[bytes]:
    """Lines that end; the last may be being written."""
    return path.read_bytes().split(b"\n")[:-1]


@contextmanager
def training(folder: Path, *settings: str) -> Iterator[Training]:
    """Start it, and kill what is left of it at the end."""
    log = folder / "log"
    words = [word for setting in (*LAYOUT, *settings) for word in ("-s", setting)]
    command = [*HEARS_SIGNALS, sys.executable, "-m", "megatron_octo.cli", "train", str(MINI), "stable", *words]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OCTO_RUNS", "MASTER_ADDR")}
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    run = Training(folder, process, log)
    left: list[psutil.Process] = []
    try:
        yield run
    finally:
        with contextlib.suppress(psutil.Error):
            left = run.everything()
        for victim in left:
            with contextlib.suppress(psutil.Error):
                victim.send_signal(signal.SIGKILL)
        process.wait()
