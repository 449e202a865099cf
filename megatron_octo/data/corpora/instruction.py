"""`instruction`: a user asks, the assistant works it out; written as the paper writes conversations."""

import random

from megatron_octo.data.corpora.problems import Problem
from megatron_octo.data.corpora.qa import worked

WORD_PROBLEMS = 0.005
_CORE = ("What is {q}?", "Compute {q}.", "{q}=?", "Please add up {q}.")


def render(problem: Problem, dice: random.Random) -> str:
    """Write a problem as a document of `instruction`."""
    ask = dice.choice(_CORE).format(q=problem.question) if problem.is_core else problem.question
    return f"User:{ask}\nAssistant:{worked(problem)}"
