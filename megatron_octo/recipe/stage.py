"""A stage: a parent, a token budget, a learning-rate schedule, a mixture."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from megatron_octo.recipe.base import Name, Problem, Section
from megatron_octo.recipe.tokens import Tokens, parse_tokens
from megatron_octo.recipe.train import Parallel

BASE = "base"
"""The parent of a stage that starts from the recipe's base model."""
_SHARE_TOLERANCE = 1e-6


class Parent(Section):
    """Where a stage starts: the recipe's base model, or another stage at a token mark."""

    stage: str
    at: Tokens | None = None
    """Tokens into the parent, rounded up to a whole step of it. None: its end."""

    def problems(self) -> Iterator[Problem]:
        """The base model has no tokens to count into."""
        if self.stage == BASE and self.at is not None:
            yield Problem("at", self.at, "the base model has no token mark", "leave it out")


def _read_parent(value: Any) -> Any:
    return {"stage": value} if isinstance(value, str) else value


def _tokens_or_zero(value: Any) -> int:
    return 0 if value in (0, "0") and not isinstance(value, bool) else parse_tokens(value)


class Schedule(Section):
    """The learning rate of a stage, as multiples of its peak."""

    shape: Literal["constant", "cosine", "linear"] = "constant"
    peak: PositiveFloat | None = None
    """None: `train.learning_rate`."""
    floor: NonNegativeFloat = Field(default=0.1, le=1.0)
    """The last rate over the peak, where the rate decays."""
    warmup: Annotated[NonNegativeInt, BeforeValidator(_tokens_or_zero)] = 0
    """Tokens over which the rate rises linearly from 0. The paper has no warm-up."""


class _WithLearningRate(Protocol):
    """A recipe's `train` section, or what a checkpoint recorded of it."""

    @property
    def learning_rate(self) -> float: ...


class Stage(Section):
    """One node of the tree of stages."""

    parent: Annotated[Parent, BeforeValidator(_read_parent)]
    tokens: Tokens
    learning_rate: Schedule = Schedule()
    mixture: dict[Name, PositiveFloat] = Field(min_length=1)
    """Source name to its share of the tokens; the shares sum to 1."""
    parallel: Parallel | None = None
    """None: the recipe's layout."""
    description: str = ""

    def peak_learning_rate(self, train: _WithLearningRate) -> float:
        """The highest rate of the stage: its own peak, or else `train.learning_rate`."""
        return self.learning_rate.peak or train.learning_rate

    def problems(self) -> Iterator[Problem]:
        """Shares that do not sum to 1, and a warm-up that does not end within the stage."""
        total = math.fsum(self.mixture.values())
        if abs(total - 1.0) > _SHARE_TOLERANCE:
            yield Problem("mixture", self.mixture, f"the shares sum to {total:.6g}, not 1", "make them sum to 1")
        warmup = self.learning_rate.warmup
        if warmup >= self.tokens:
            why = f"not shorter than the stage's {self.tokens} tokens"
            yield Problem("learning_rate.warmup", warmup, why, "shorten it")
