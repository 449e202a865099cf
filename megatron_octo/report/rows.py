"""Rows of metrics.jsonl and validation.jsonl, read while a stage may still be writing them."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from megatron_octo.report.models import Count, Number, Record, Value
from megatron_octo.runtime.records import read_records

R = TypeVar("R", bound=Record)


class StepRow(Record):
    """One optimizer step of a stage, from metrics.jsonl."""

    step: Count
    """The number of optimizer steps taken, from 1."""
    stage_tokens: Count
    tokens: Count
    """Over the whole lineage."""
    loss: Value
    """NaN where the step had no finite one."""
    lr: Number


class ValidationRow(Record):
    """The loss on one source's held-out documents, from validation.jsonl."""

    step: Count
    stage_tokens: Count
    tokens: Count
    source: str
    loss: Value


def read_rows(path: Path, model: type[R]) -> list[R]:
    """The rows of a .jsonl file in order; empty if there is no file.

    Lines that are not such rows are skipped: damaged, of another kind, or cut short.
    """
    rows = []
    for value in read_records(path):
        try:
            rows.append(model.model_validate(value))
        except ValidationError:
            continue
    return rows


def read_steps(path: Path) -> list[StepRow]:
    """Steps of metrics.jsonl in order; empty if there is no file.

    A resumed run wrote some steps twice. The later attempt wins, and the steps that the earlier one took after
    the checkpoint are dropped.
    """
    rows: list[StepRow] = []
    for row in read_rows(path, StepRow):
        while rows and rows[-1].step >= row.step:
            rows.pop()
        rows.append(row)
    return rows


def read_validation(path: Path) -> list[ValidationRow]:
    """Rows of validation.jsonl in order. A resume is handled as in `read_steps`, source by source."""
    rows: list[ValidationRow] = []
    for row in read_rows(path, ValidationRow):
        while rows and rows[-1].step > row.step:
            rows.pop()
        rows = [old for old in rows if (old.step, old.source) != (row.step, row.source)]
        rows.append(row)
    return rows
