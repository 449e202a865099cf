"""What went wrong in a rank, told to the launcher through a private folder.

A rank that fails takes the others down with it, each with a traceback of its own about a lost connection. The launcher
shows the first cause alone.
"""

import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel

from megatron_octo.errors import OctoError, RuntimeSetupError, explain_os_error
from megatron_octo.reading.json_text import read_record
from megatron_octo.runtime.files import write_text_atomically

VARIABLE = "OCTO_RANK_FOLDER"
"""The launcher's private folder. Not set where torchrun or SLURM started the ranks."""


class Failure(BaseModel):
    """Why a rank ended."""

    at: float
    """Unix time."""
    text: str
    """A message for the user, or a traceback."""
    is_message: bool
    exit_code: int


@dataclass(frozen=True)
class RankFiles:
    """The files of one rank in the launcher's folder."""

    folder: Path
    rank: int

    @property
    def failure(self) -> Path:
        return self.folder / f"failure-{self.rank}.json"

    @property
    def stacks(self) -> Path:
        """Stacks of all threads, written where a step takes too long."""
        return self.folder / f"stacks-{self.rank}.txt"

    def read_failure(self) -> Failure | None:
        """What the rank said, if it said anything."""
        if not self.failure.is_file():
            return None
        try:
            return read_record(self.failure, Failure, RuntimeSetupError, "run the same command again")
        except RuntimeSetupError:  # cut short; the exit status is left
            return None


def rank_files(rank: int) -> RankFiles | None:
    """This rank's files; None where no launcher of ours started it."""
    folder = os.environ.get(VARIABLE)
    return RankFiles(Path(folder), rank) if folder else None


def report_failure(error: Exception, rank: int) -> int:
    """Say why this rank ends, to the launcher or else on stderr. Returns the exit status to end with.

    Without a launcher, an OctoError is printed by the first rank alone, since all ranks raise it; what one rank alone
    can meet (its disk, its permissions) is printed by each.
    """
    told = str(error) if isinstance(error, OctoError) else explain_os_error(error)
    text = _printable(told if told is not None else "".join(traceback.format_exception(error)))
    exit_code = getattr(error, "exit_code", 1 if told is None else OctoError.exit_code)
    failure = Failure(at=time.time(), text=text, is_message=told is not None, exit_code=exit_code)
    files = rank_files(rank)
    if files is not None:
        with suppress(OSError):  # the disk may be the very reason
            write_text_atomically(files.failure, failure.model_dump_json())
            return exit_code
    if told is None:
        print(text, file=sys.stderr, flush=True)
    elif rank == 0 or not isinstance(error, OctoError):
        print(f"octo: {text}" if rank == 0 else f"octo: rank {rank}: {text}", file=sys.stderr, flush=True)
    return exit_code


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def open_stacks(rank: int) -> TextIO:
    """Where this rank's stacks go when a step takes too long."""
    files = rank_files(rank)
    return sys.stderr if files is None else open(files.stacks, "w", encoding="utf-8")
