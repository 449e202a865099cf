"""What one task of a pipeline counts, shared by its steps and handed to the preparing process as a small file."""

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
    """Counts of one task. The steps of a pipeline hold the same one, and `begin` clears it for each task."""

    folder: str
    """Where reports go: `<rank>.json` when a task is done, `<rank>.progress` while it works."""
    rank: int = 0
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    done: int = 0
    """How much of the input is read, in the units of the plan's total (bytes, or documents)."""
    bad: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """For each reason the first few places: file, and line counted from 0 within this task's part of the file."""
    lines: dict[str, int] = field(default_factory=dict)
    """Lines of each file that this task read."""
    contaminated: Counter[str] = field(default_factory=Counter)
    """Documents dropped, by evaluation set."""
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
        """Let the preparing process see how far this task is; at most twice a second."""
        now = time.monotonic()
        if now >= self.next_tick:
            self.next_tick = now + _TICK_SECONDS
            progress = {"documents": self.documents, "tokens": self.tokens, "done": self.done}
            write_text_atomically(Path(self.folder) / f"{self.rank:05d}.progress", json.dumps(progress))

    def finish(self) -> None:
        """Write the report, which says that this task's files are whole."""
        report = {
            "rows": self.rows, "documents": self.documents, "tokens": self.tokens, "done": self.done,
            "bad": self.bad, "places": self.places, "lines": self.lines, "contaminated": self.contaminated,
        }  # fmt: skip
        write_text_atomically(Path(self.folder) / f"{self.rank:05d}.json", json.dumps(report))


def read_report(folder: Path, rank: int) -> dict[str, Any] | None:
    """A finished task's report; None while there is none.

    Raises:
        DataError: it is damaged.
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
    """How far a task is: its report, or what it last said; None before it has begun, or where it cannot be read."""
    for name in (f"{rank:05d}.json", f"{rank:05d}.progress"):
        try:
            progress = read_json_object(folder / name, DataError, needs=_PROGRESS)
        except DataError:  # a bar is no reason to stop
            continue
        if all(type(progress[key]) is int and progress[key] >= 0 for key in _PROGRESS):
            return progress
    return None
