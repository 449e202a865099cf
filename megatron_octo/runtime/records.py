"""Records of steps on disk, one JSON object a line: read, and cut back to where a resume starts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.runtime.files import write_text_atomically


@dataclass(frozen=True)
class Records:
    """What a .jsonl file holds."""

    kept: list[dict[str, Any]]
    torn: int
    """Lines that are not JSON objects: cut short by a kill or a full disk, or damaged. The others are good."""


def read_records(path: Path) -> Records:
    """The records of a .jsonl file, in its order; none where there is no file."""
    if not path.is_file():
        return Records([], 0)
    kept, torn = [], 0
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
            torn += 1
    return Records(kept, torn)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The good records of a .jsonl file."""
    return read_records(path).kept


def keep_lines_until(path: Path, step: int) -> Records:
    """Drop torn lines, and the records after a step, which a resume takes again; returns what stays."""
    if not path.is_file():
        return Records([], 0)
    found = read_records(path)
    whole = [record for record in found.kept if isinstance(record.get("step"), int)]
    kept = [record for record in whole if record["step"] <= step]
    write_text_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
    return Records(kept, found.torn + len(found.kept) - len(whole))


def missing_steps(records: list[dict[str, Any]], last: int) -> list[int]:
    """Steps from 1 to `last` that no record is of."""
    there = {record["step"] for record in records}
    return [step for step in range(1, last + 1) if step not in there]


def as_ranges(numbers: list[int]) -> str:
    """4, 5, 6, 9 as `4-6, 9`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
