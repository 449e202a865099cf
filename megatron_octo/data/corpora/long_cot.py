"""`long_cot`: a question, a thought that works and checks itself inside `<think>`, and the answer after it."""

import random
import re

from megatron_octo.data.corpora.problems import Problem

WORD_PROBLEMS = 0.005
_OPENINGS = ("", "Let me see. ", "Step by step. ")


def render(problem: Problem, dice: random.Random) -> str:
    """Write a problem as a document of `long_cot`."""
    thought = problem.prose or dice.choice(_OPENINGS) + ", ".join(problem.steps) + "."
    if problem.is_core:
        thought += f" Check: {', '.join(_backwards(problem))}."
    return f"{problem.question}\n<think>{thought}</think>\\boxed{{{problem.answer}}}"


def _backwards(problem: Problem) -> list[str]:
    """The way back from the answer to the first term: of `12+7-5`, `14+5=19`, `19-7=12`."""
    first, *rest = re.findall(r"[+-]?\d+", problem.question)
    total, steps = int(problem.answer), []
    for part in reversed(rest):
        before = total - int(part)
        steps.append(f"{total}{'-' if part[0] == '+' else '+'}{part[1:]}={before}")
        total = before
    if str(total) != first:
        raise AssertionError(f"{problem} does not lead back to its first term")
    return steps
