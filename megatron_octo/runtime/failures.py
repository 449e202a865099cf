"""Failures of ranks, reported to the launcher through a private folder.

When a rank fails, the other ranks fail too, each with its own traceback about a lost connection. The launcher shows
only the first cause.
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
"""The launcher's private folder. Not set if torchrun or SLURM started the ranks."""


class Failure(BaseModel):
    """Why a rank failed."""

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
        """Stacks of all threads, written if a step takes too long."""
        return self.folder / f"stacks-{self.rank}.txt"

    def read_failure(self) -> Failure | None:
        """The failure that the rank reported; None if it reported none."""
        if not self.failure.is_file():
            return None
        try:
            return read_record(self.failure, Failure, RuntimeSetupError, "run the same command again")
        except RuntimeSetupError:  # cut short; the exit status must do
            return None


def rank_files(rank: int) -> RankFiles | None:
    """This rank's files; None if another launcher started it."""
    folder = os.environ.get(VARIABLE)
    return RankFiles(Path(folder), rank) if folder else None


def report_failure(error: Exception, rank: int) -> int:
    """Report why this rank fails, to our launcher or else on stderr. Returns the exit status to use.

    On stderr, only the first rank prints an OctoError, since all ranks raise it. Any other error, such as one of a
    rank's disk, is printed by every rank that meets it.
    """
    message = str(error) if isinstance(error, OctoError) else explain_os_error(error)
    text = _printable(message if message is not None else "".join(traceback.format_exception(error)))
    exit_code = getattr(error, "exit_code", 1 if message is None else OctoError.exit_code)
    failure = Failure(at=time.time(), text=text, is_message=message is not None, exit_code=exit_code)
    files = rank_files(rank)
    if files is not None:
        with suppress(OSError):  # the disk may be the cause
            write_text_atomically(files.failure, failure.model_dump_json())
            return exit_code
    if message is None:
        print(text, file=sys.stderr, flush=True)
    elif rank == 0 or not isinstance(error, OctoError):
        print(f"octo: {text}" if rank == 0 else f"octo: rank {rank}: {text}", file=sys.stderr, flush=True)
    return exit_code


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def open_stacks(rank: int) -> TextIO:
    """The file for this rank's stacks if a step takes too long: the launcher's, or stderr."""
    files = rank_files(rank)
    return sys.stderr if files is None else open(files.stacks, "w", encoding="utf-8")
