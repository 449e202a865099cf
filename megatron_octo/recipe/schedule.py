"""The learning rate as a pure function of tokens, and the rounding of budgets to steps."""

import math

from megatron_octo.recipe.stage import Stage
from megatron_octo.recipe.train import TrainSection


def steps_of(tokens: int, train: TrainSection) -> int:
    """Whole steps that a budget takes, rounded up: 200B at 4,194,304 tokens a step is 47,684 steps."""
    return -(-tokens // train.tokens_per_step)


def learning_rate(stage: Stage, tokens: float, train: TrainSection) -> float:
    """Learning rate after `tokens` tokens of a stage; held at its last value beyond the budget.

    constant: peak. cosine: floor + (1 - floor) * (1 + cos(pi t)) / 2 with t = tokens / budget, times peak.
    linear: 1 + (floor - 1) t, times peak. A warm-up rises linearly from 0 over its tokens, and t then
    runs over the rest.

    Source: OctoThinker, arXiv 2506.20512 (constant, then cosine to a tenth).
    """
    schedule, peak = stage.learning_rate, stage.peak_learning_rate(train)
    if tokens < schedule.warmup:
        return peak * tokens / schedule.warmup
    if schedule.shape == "constant":
        return peak
    t = min(max((tokens - schedule.warmup) / (stage.tokens - schedule.warmup), 0.0), 1.0)
    if schedule.shape == "linear":
        return peak * (1.0 + (schedule.floor - 1.0) * t)
    if t == 1.0:  # exactly, which the cosine is not
        return peak * schedule.floor
    return peak * (schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * t)))


def mark_of_step(stage: Stage, step: int, train: TrainSection) -> float:
    """Token mark at which update `step` (from 0) of a stage takes its learning rate.

    The marks of the n updates lie evenly on [0, budget], both ends included: the first update has exactly the
    schedule's first rate, and the last update exactly its floor. A mark is less than one step away from the tokens
    consumed.
    """
    steps = steps_of(stage.tokens, train)
    return stage.tokens * step / (steps - 1) if steps > 1 else 0.0


def learning_rate_of_step(stage: Stage, step: int, train: TrainSection) -> float:
    """Learning rate of update `step` (from 0) of a stage."""
    return learning_rate(stage, mark_of_step(stage, step, train), train)
