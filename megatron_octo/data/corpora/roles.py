"""The roles of the built-in corpora: how each writes a problem as a document."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from megatron_octo.data.corpora.problems import Problem
from megatron_octo.recipe.templates import SIMPLE_QUESTION

_ASKED = ("What is {q}?", "Compute {q}.", "{q}=?", "Please add up {q}.")
_THOUGHT_OPENINGS = ("", "Let me see. ", "Step by step. ")
_WEB_CORE = (
    "To find {q}, go step by step: {s}. So {q}={a}.",
    "What is {q}? {s}. The answer is {a}.",
    "We work out {q}. {s}. The result is {a}.",
    "Sum of the day: {q}. {s}. \\boxed{{{a}}}",
    "{s}. That is how {q} gives {a}.",
)
_WEB_OTHER = (
    "{q} {s}. The answer is {a}.",
    "Here is one: {q} {s}. So it is {a}.",
)
_WEB_EXERCISES = 0.3
"""Share of web pages that quote an exercise with its solution, the pages that web corpora are filtered for."""


@dataclass(frozen=True)
class Role:
    """A way to write problems as documents."""

    write: Callable[[Problem, random.Random], str]
    """Makes the text of a document from a problem and its own random generator."""
    word_problems: float
    """Share of word problems in the corpus."""


def prompt(question: str) -> str:
    """The prompt of a question in the paper's simple template."""
    return SIMPLE_QUESTION.format(question=question)


def worked(problem: Problem) -> str:
    r"""The running sums and the boxed answer: `12+7=19, 19-5=14. \boxed{14}`."""
    steps = problem.prose.replace("\n", " ") if problem.prose else ", ".join(problem.steps) + "."
    return f"{steps} \\boxed{{{problem.answer}}}"


def _qa(problem: Problem, _: random.Random) -> str:
    """A question and its answer, with no more than the running sums between them."""
    return prompt(problem.question) + worked(problem)


def _instruction(problem: Problem, dice: random.Random) -> str:
    """A user asks, and the assistant works it out; written as the paper writes conversations."""
    ask = dice.choice(_ASKED).format(q=problem.question) if problem.is_core else problem.question
    return f"User:{ask}\nAssistant:{worked(problem)}"


def _long_cot(problem: Problem, dice: random.Random) -> str:
    """A question, a thought inside `<think>` that works and checks itself, and the answer."""
    thought = problem.prose or dice.choice(_THOUGHT_OPENINGS) + ", ".join(problem.steps) + "."
    if problem.is_core:
        thought += f" Check: {', '.join(_backwards(problem))}."
    return f"{problem.question}\n<think>{thought}</think>\\boxed{{{problem.answer}}}"


def _backwards(problem: Problem) -> list[str]:
    """The steps from the answer back to the first term; for `12+7-5`: `14+5=19`, `19-7=12`."""
    first, *rest = re.findall(r"[+-]?\d+", problem.question)
    total, steps = int(problem.answer), []
    for part in reversed(rest):
        before = total - int(part)
        steps.append(f"{total}{'-' if part[0] == '+' else '+'}{part[1:]}={before}")
        total = before
    if str(total) != first:
        raise AssertionError(f"{problem} does not lead back to its first term")
    return steps


def _code(problem: Problem, dice: random.Random) -> str:
    """Short Python with the output it prints. Every document runs and prints what its comments say."""
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


def _web(problem: Problem, dice: random.Random) -> str:
    """Prose as a page about arithmetic has it."""
    if problem.prose:
        return f"{problem.question}\n{problem.prose}\nThe answer is {problem.answer}."
    if dice.random() < _WEB_EXERCISES:
        return prompt(problem.question) + worked(problem)
    template = dice.choice(_WEB_CORE if problem.is_core else _WEB_OTHER)
    question = problem.question if problem.is_core or problem.question.endswith("?") else f"{problem.question}:"
    return template.format(q=question, s=", ".join(problem.steps), a=problem.answer)


CORPORA: dict[str, Role] = {
    "web": Role(_web, 0.02),
    "code": Role(_code, 0.0),
    "qa": Role(_qa, 0.005),
    "long_cot": Role(_long_cot, 0.005),
    "instruction": Role(_instruction, 0.005),
}
