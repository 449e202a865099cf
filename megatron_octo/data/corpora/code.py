"""`code`: short Python with the output it prints. Every document runs, and prints what it says."""

import random
import re

from megatron_octo.data.corpora.problems import Problem

WORD_PROBLEMS = 0.0


def render(problem: Problem, dice: random.Random) -> str:
    """Write a problem as a document of `code`."""
    if not problem.is_core:
        if problem.question.startswith("Solve "):
            return _check_equation(problem)
        return "\n".join(f"print({step.partition('=')[0]})  # {step}" for step in problem.steps)
    style = dice.randrange(3)
    if style == 0:
        return f"print({problem.question})  # {', '.join(problem.steps)}"
    if style == 1:
        return "\n".join(f">>> {left}\n{right}" for left, _, right in (s.partition("=") for s in problem.steps))
    first, *rest = re.findall(r"[+-]?\d+", problem.question)
    lines = [f"x = {first}"]
    lines += [f"x {part[0]}= {part[1:]}  # {step}" for part, step in zip(rest, problem.steps, strict=True)]
    return "\n".join([*lines, f"print(x)  # {problem.answer}"])


def _check_equation(problem: Problem) -> str:
    left, _, right = problem.question.removeprefix("Solve ").partition("=")
    return f"{problem.steps[0].replace('=', ' = ')}\nprint({left} == {right})  # True"
