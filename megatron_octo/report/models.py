"""The values that the reports read from a run's files. Other keys belong to other legs and are left alone."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LARGEST = 1e30
"""No loss, rate or time is larger, and sums of smaller ones do not overflow."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]


def _null_as_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _finite_or_nan(value: float) -> float:
    if not math.isfinite(value):
        return math.nan
    if abs(value) > _LARGEST:
        raise ValueError(f"at most {_LARGEST:.0e} is read")
    return value


Value = Annotated[float, BeforeValidator(_null_as_nan), AfterValidator(_finite_or_nan)]
"""A number of a curve. NaN stands for null and for a number that is not finite."""


class Record(BaseModel):
    """A record that is validated strictly: neither "1" nor true is a number."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class HeldoutResult(Record):
    """eval/<stage>/heldout.json."""

    accuracy: Number
    """The share of held-out problems answered right."""
    problems: Count


class RlHeldoutResult(Record):
    """rl/<stage>/heldout.json."""

    accuracy_before: Number
    accuracy_after: Number
    problems: Count


class RlResult(Record):
    """rl/<stage>/result.json."""

    steps: Count | None = None
    mean_response_length: Number | None = None
    wall_seconds: Seconds | None = None
    prompts: Count | None = None
    prompts_in_test_sets: dict[str, Count] | None = None


class StageResult(Record):
    """stages/<stage>/result.json, written by the trainer when a stage is complete."""

    tokens: Count
    steps: Count
    first_lr: Number
    last_lr: Number
    first_loss: Number | None
    last_loss: Number | None
    validation_loss: dict[str, Number | None] | None
    """By source, in nats a token."""
    parent: str
    parent_validation_loss: dict[str, Number | None] | None
    wall_seconds: Seconds
    tokens_per_second: Number | None
    checkpoint: Annotated[str, Field(pattern=r"^step-[0-9]{1,20}$")] | None = None
    """The name of the last checkpoint's folder. Results of early releases do not have it."""


class StageSummary(Record):
    """A stage in summary.json. Any of the numbers may be missing."""

    tokens: Count | None = None
    steps: Count | None = None
    first_lr: Number | None = None
    last_lr: Number | None = None
    first_loss: Number | None = None
    last_loss: Number | None = None
    validation_loss: dict[str, Number | None] | None = None
    parent: str | None = None
    parent_validation_loss: dict[str, Number | None] | None = None
    wall_seconds: Seconds | None = None
    tokens_per_second: Number | None = None
    accuracy: Number | None = None
    problems: Count | None = None


class RlSummary(RlResult):
    """An RL run in summary.json."""

    accuracy_before: Number | None = None
    accuracy_after: Number | None = None
    problems: Count | None = None


class PreparedSplit(Record):
    """A split in a source's manifest."""

    tokens: Count


class PreparedSource(Record):
    """data/<source>/manifest.json."""

    train: PreparedSplit


class Summary(Record):
    """summary.json."""

    recipe: str = ""
    stages: dict[str, StageSummary] = {}
    rl: dict[str, RlSummary] = {}
