"""`qa`: a question and its answer, with no more than the running sums between them."""

import random

from megatron_octo.data.corpora.problems import Problem

WORD_PROBLEMS = 0.005


def worked(problem: Problem) -> str:
    r"""The running sums and the boxed answer: `12+7=19, 19-5=14. \boxed{14}`."""
    steps = problem.prose.replace("\n", " ") if problem.prose else ", ".join(problem.steps) + "."
    return f"{steps} \\boxed{{{problem.answer}}}"


def prompt(question: str) -> str:
    """What a model is given to answer: the paper's simple template."""
    return f"Question:{question}\nAnswer:"


def render(problem: Problem, dice: random.Random) -> str:
    """Write a problem as a document of `qa`."""
    return prompt(problem.question) + worked(problem)
