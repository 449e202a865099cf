"""The rows that a stage leaves behind, read back while the stage may still be writing them."""

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_octo.runtime.records import read_lines


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
    for value in read_lines(path):
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
    for value in read_lines(path):
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


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
