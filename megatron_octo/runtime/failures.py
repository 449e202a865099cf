"""What went wrong in a rank, told to the launcher through a private folder.

A rank that fails takes the others down with it, each with a traceback of its own about a lost connection. The launcher
shows the first cause alone.
"""

import os
import sys
import time
import traceback
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
        return read_record(self.failure, Failure, RuntimeSetupError, "run the same command again")


def rank_files(rank: int) -> RankFiles | None:
    """This rank's files; None where no launcher of ours started it."""
    folder = os.environ.get(VARIABLE)
    return RankFiles(Path(folder), rank) if folder else None


def report_failure(error: Exception, rank: int) -> int:
    """Say why this rank ends, to the launcher or else on stderr. Returns the exit status to end with.

    A message (an OctoError's, or of a failing disk) that all ranks have is printed by the first alone.
    """
    told = str(error) if isinstance(error, OctoError) else explain_os_error(error)
    is_message = told is not None
    text = told if told is not None else "".join(traceback.format_exception(error))
    exit_code = getattr(error, "exit_code", OctoError.exit_code if is_message else 1)
    files = rank_files(rank)
    if files is None:
        if not is_message:
            print(text, file=sys.stderr, flush=True)
        elif rank == 0:
            print(f"octo: {text}", file=sys.stderr, flush=True)
        return exit_code
    failure = Failure(at=time.time(), text=text, is_message=is_message, exit_code=exit_code)
    write_text_atomically(files.failure, failure.model_dump_json())
    return exit_code


def open_stacks(rank: int) -> TextIO:
    """Where this rank's stacks go when a step takes too long."""
    files = rank_files(rank)
    return sys.stderr if files is None else open(files.stacks, "w", encoding="utf-8")
