"""What the files of a run hold, as far as the reports show it. Other keys are other legs', and are left alone."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_LARGEST = 1e30
"""No loss, rate or time is larger, and sums of what is smaller do not overflow."""

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
"""A number of a curve: NaN where it was not finite, or null."""


class Record(BaseModel):
    """Types are taken as they stand: neither "1" nor true is a number."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class HeldoutResult(Record):
    """eval/<stage>/heldout.json."""

    accuracy: Number
    """Of the held-out problems, the share answered right."""
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
    """stages/<stage>/result.json: what the trainer says of a stage."""

    tokens: Count
    steps: Count
    first_lr: Number
    last_lr: Number
    first_loss: Number | None
    last_loss: Number | None
    validation_loss: dict[str, Number | None] | None
    """Of each source."""
    parent: str
    parent_validation_loss: dict[str, Number | None] | None
    wall_seconds: Seconds
    tokens_per_second: Number | None
    checkpoint: Annotated[str, Field(pattern=r"^step-[0-9]{1,20}$")] | None = None
    """The folder of the last one. Results of early releases do not name it."""


class StageSummary(Record):
    """A stage in summary.json. Any of the numbers may not be there yet."""

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
    """RL from a stage in summary.json."""

    accuracy_before: Number | None = None
    accuracy_after: Number | None = None
    problems: Count | None = None


class PreparedSplit(Record):
    """A split in the manifest of a source."""

    tokens: Count


class PreparedSource(Record):
    """data/<source>/manifest.json."""

    train: PreparedSplit


class Summary(Record):
    """summary.json."""

    recipe: str = ""
    stages: dict[str, StageSummary] = {}
    rl: dict[str, RlSummary] = {}
