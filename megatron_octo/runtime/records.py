"""Records of steps on disk, one JSON object a line: reading them, and cutting them back to a checkpoint.

A kill or a full disk can cut a line short, so every reader skips lines that are not JSON objects. A resume counts them,
to report them, and removes them from the file.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.runtime.files import write_text_atomically


@dataclass(frozen=True)
class Records:
    """The content of a .jsonl file."""

    kept: list[dict[str, Any]]
    damaged: int
    """Number of lines that are not records."""


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file, in its order. Damaged lines are skipped; a missing file has no records."""
    return _parse(path).kept


def truncate_records(path: Path, last_step: int) -> Records:
    """Remove damaged lines and all records after a step, which a resume will write again.

    Returns:
        The records that remain, and the number of damaged lines, which includes records without a step.
    """
    if not path.is_file():
        return Records([], 0)
    found = _parse(path)
    with_step = [record for record in found.kept if isinstance(record.get("step"), int)]
    kept = [record for record in with_step if record["step"] <= last_step]
    write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
    return Records(kept, found.damaged + len(found.kept) - len(with_step))


def missing_steps(records: list[dict[str, Any]], last: int) -> list[int]:
    """The steps from 1 to `last` that have no record."""
    recorded = {record["step"] for record in records}
    return [step for step in range(1, last + 1) if step not in recorded]


def as_ranges(numbers: list[int]) -> str:
    """4, 5, 6, 9 as `4-6, 9`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _parse(path: Path) -> Records:
    if not path.is_file():
        return Records([], 0)
    kept, damaged = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            record = None
        if isinstance(record, dict):
            kept.append(record)
        else:
            damaged += 1
    return Records(kept, damaged)
