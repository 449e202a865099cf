"""A stage: a parent, a token budget, a learning-rate shape, a mixture."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from megatron_octo.recipe.base import Name, Section
from megatron_octo.recipe.tokens import Tokens, parse_tokens
from megatron_octo.recipe.train import Parallel, TrainSection

BASE = "base"
"""The parent of a stage that starts the lineage."""


class Parent(Section):
    """Where a stage starts: the recipe's base model, or another stage at a token mark."""

    stage: str
    at: Tokens | None = None
    """Tokens into the parent. None: its end. Rounded up to a whole step of the parent."""


def _read_parent(value: Any) -> Any:
    return {"stage": value} if isinstance(value, str) else value


def _tokens_or_zero(value: Any) -> int:
    return 0 if value in (0, "0") and not isinstance(value, bool) else parse_tokens(value)


class LearningRateShape(Section):
    """The learning rate of a stage, as multiples of `peak`."""

    shape: Literal["constant", "cosine", "linear"] = "constant"
    peak: PositiveFloat | None = None
    """None: `train.learning_rate`."""
    floor: NonNegativeFloat = Field(default=0.1, le=1.0)
    """Last rate over `peak`, for the shapes that decay."""
    warmup: Annotated[NonNegativeInt, BeforeValidator(_tokens_or_zero)] = 0
    """Tokens of linear warm-up from 0. The paper uses none."""


class Stage(Section):
    """One node of the tree of stages."""

    parent: Annotated[Parent, BeforeValidator(_read_parent)]
    tokens: Tokens
    learning_rate: LearningRateShape = LearningRateShape()
    mixture: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source name to its share of the tokens; the shares sum to 1."""
    parallel: Parallel | None = None
    """None: the recipe's layout."""
    description: str = ""

    def peak_learning_rate(self, train: TrainSection) -> float:
        """The highest rate of the stage: its own `peak`, or else the recipe's `train.learning_rate`."""
        return self.learning_rate.peak or train.learning_rate
