"""The rows that a stage leaves behind, read back while the stage may still be writing them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepRow:
    """One optimizer step of a stage, from metrics.jsonl."""

    step: int
    """From 1: the number of updates done."""
    stage_tokens: int
    tokens: int
    """Over the whole lineage."""
    loss: float
    """NaN where the step had none."""
    lr: float


@dataclass(frozen=True)
class ValidationRow:
    """The loss on one source's held-out documents, from validation.jsonl."""

    step: int
    stage_tokens: int
    tokens: int
    source: str
    loss: float


def read_steps(path: Path) -> list[StepRow]:
    """Steps of metrics.jsonl in order; empty where there is no file.

    A run that was resumed wrote some steps twice. The later attempt wins, and what the earlier one wrote
    beyond the step it was resumed from is dropped with it.
    """
    rows: list[StepRow] = []
    for value in _objects(path):
        row = StepRow(
            int(value["step"]),
            int(value["stage_tokens"]),
            int(value["tokens"]),
            _number(value["loss"]),
            _number(value["lr"]),
        )
        while rows and rows[-1].step >= row.step:
            rows.pop()
        rows.append(row)
    return rows


def read_validation(path: Path) -> list[ValidationRow]:
    """Rows of validation.jsonl in order; a resume is treated as in `read_steps`, source by source."""
    rows: list[ValidationRow] = []
    for value in _objects(path):
        row = ValidationRow(
            int(value["step"]),
            int(value["stage_tokens"]),
            int(value["tokens"]),
            str(value["source"]),
            _number(value["loss"]),
        )
        while rows and rows[-1].step > row.step:
            rows.pop()
        rows = [old for old in rows if (old.step, old.source) != (row.step, row.source)]
        rows.append(row)
    return rows


def _objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each. A torn line (a write cut short) is passed over."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
