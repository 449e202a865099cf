"""The counts of one pipeline task, which its steps share and write to small files for the parent process."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_octo.errors import DataError
from megatron_octo.reading.json_text import read_json_object
from megatron_octo.runtime.files import write_text_atomically

PLACES_KEPT = 5
_TICK_SECONDS = 0.5
_PROGRESS = ("documents", "tokens", "done")
_REPORT = ("rows", *_PROGRESS, "bad", "places", "lines", "contaminated")


@dataclass
class Tally:
    """Counts of one task. All steps of a pipeline share one tally, and `begin` clears it for each task."""

    folder: str
    """Folder of the reports: `<rank>.json` of a finished task, `<rank>.progress` of a running one."""
    rank: int = 0
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    done: int = 0
    """How much of the input was read, in the unit of `Inputs.total` (bytes or documents)."""
    bad: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """The first few places of each reason: file, and line counted from 0 within this task's piece of the file."""
    lines: dict[str, int] = field(default_factory=dict)
    """Number of lines that this task read of each file."""
    contaminated: Counter[str] = field(default_factory=Counter)
    """Number of dropped documents by evaluation set."""
    next_tick: float = 0.0

    def begin(self, rank: int) -> None:
        """Start counting for a task."""
        self.rank, self.next_tick = rank, 0.0
        self.rows = self.documents = self.tokens = self.done = 0
        self.bad, self.contaminated = Counter(), Counter()
        self.places, self.lines = {}, {}

    def bad_row(self, reason: str, file: str, line: int) -> None:
        """Count a row that cannot be used."""
        self.bad[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES_KEPT:
            places.append((file, line))

    def tick(self) -> None:
        """Report the progress of this task to the parent process, at most twice a second."""
        now = time.monotonic()
        if now >= self.next_tick:
            self.next_tick = now + _TICK_SECONDS
            progress = {"documents": self.documents, "tokens": self.tokens, "done": self.done}
            write_text_atomically(Path(self.folder) / f"{self.rank:05d}.progress", json.dumps(progress))

    def finish(self) -> None:
        """Write the report. Its presence means that this task's files are complete."""
        report = {
            "rows": self.rows, "documents": self.documents, "tokens": self.tokens, "done": self.done,
            "bad": self.bad, "places": self.places, "lines": self.lines, "contaminated": self.contaminated,
        }  # fmt: skip
        write_text_atomically(Path(self.folder) / f"{self.rank:05d}.json", json.dumps(report))


def read_report(folder: Path, rank: int) -> dict[str, Any] | None:
    """The report of a finished task; None if it is not finished.

    Raises:
        DataError: the report is damaged.
    """
    path = folder / f"{rank:05d}.json"
    if not path.is_file():
        return None
    report = read_json_object(path, DataError, "run `octo data prepare` again", needs=_REPORT)
    numbers = [report[key] for key in ("rows", *_PROGRESS)]
    if not all(type(number) is int and number >= 0 for number in numbers) or not all(
        isinstance(report[key], dict) for key in ("bad", "places", "lines", "contaminated")
    ):
        raise DataError(f"{path}: not a task's report; run `octo data prepare` again")
    return report


def read_progress(folder: Path, rank: int) -> dict[str, Any] | None:
    """The report of a finished task, or the last progress of a running one; None if none can be read."""
    for name in (f"{rank:05d}.json", f"{rank:05d}.progress"):
        try:
            progress = read_json_object(folder / name, DataError, needs=_PROGRESS)
        except DataError:  # only the progress bar needs it
            continue
        if all(type(progress[key]) is int and progress[key] >= 0 for key in _PROGRESS):
            return progress
    return None
