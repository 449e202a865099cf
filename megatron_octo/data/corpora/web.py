"""`web`: prose as a page about arithmetic would have it."""

import random

from megatron_octo.data.corpora.problems import Problem
from megatron_octo.data.corpora.qa import prompt, worked

WORD_PROBLEMS = 0.02
_CORE = (
    "To find {q}, go step by step: {s}. So {q}={a}.",
    "What is {q}? {s}. The answer is {a}.",
    "We work out {q}. {s}. The result is {a}.",
    "Sum of the day: {q}. {s}. \\boxed{{{a}}}",
    "{s}. That is how {q} gives {a}.",
)
_OTHER = (
    "{q} {s}. The answer is {a}.",
    "Here is one: {q} {s}. So it is {a}.",
)


def render(problem: Problem, dice: random.Random) -> str:
    """Write a problem as a document of `web`."""
    if problem.prose:
        return f"{problem.question}\n{problem.prose}\nThe answer is {problem.answer}."
    # pages that quote an exercise as it is set and solved: what web corpora are filtered for
    if dice.random() < 0.3:
        return prompt(problem.question) + worked(problem)
    template = dice.choice(_CORE if problem.is_core else _OTHER)
    question = problem.question if problem.is_core or problem.question.endswith("?") else f"{problem.question}:"
    return template.format(q=question, s=", ".join(problem.steps), a=problem.answer)
