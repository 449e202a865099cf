"""Problems with checked answers, from reasoning-gym, in the short forms that every built-in corpus shares.

reasoning-gym draws item i of a data set from `seed + i`, so data sets with nearby seeds share items. Each stream here
starts at a seed that is made from its name by SHA-256, so that streams do not overlap. Training text and held-out
problems are kept apart by comparing texts, never by seeds.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

CORPUS_VERSION = 1
"""Increased whenever the text of a built-in corpus changes. It is part of the settings that a manifest records."""

CORE_SHARE = 0.75
_ITEMS = 100_000
_EXPRESSION = re.compile(r"\d+(?:[+-]\d+)+")
_EXPRESSION_SPACED = re.compile(r"(?<=\d)[ \t]*([+\-\u2212])[ \t]*(?=\d)")


@dataclass(frozen=True)
class Problem:
    """A problem with its solution."""

    question: str
    """The text after `Question:`; for the core skill only the expression, e.g. `12+7-5`."""
    steps: tuple[str, ...]
    """Equations in order, e.g. (`12+7=19`, `19-5=14`); empty if the problem has prose instead."""
    answer: str
    is_core: bool = False
    prose: str = ""
    """reasoning-gym's solution of a word problem, in prose."""


def expressions_in(text: str) -> list[str]:
    """Every sum or difference of whole numbers in a text, at full length and without spaces.

    `12 + 7-5` is found as `12+7-5`; the first terms of a longer expression are not an expression of their own.
    """
    return _EXPRESSION.findall(_EXPRESSION_SPACED.sub(_tight, text))


def _tight(match: re.Match[str]) -> str:
    return "+" if match.group(1) == "+" else "-"


def stream_seed(name: str) -> int:
    """The first reasoning-gym seed of a named stream: 60 bits of SHA-256, so that streams of items do not overlap."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 4


def core_problem(expression: str) -> Problem | None:
    """Solve a sum or difference by running partial sums; None if a partial sum is negative.

    We leave out negative partial sums to keep the skill learnable for the smallest models.
    """
    parts = re.findall(r"[+-]?\d+", expression)
    total, steps = int(parts[0]), []
    for part in parts[1:]:
        after = total + int(part)
        if after < 0:
            return None
        steps.append(f"{total}{part}={after}")
        total = after
    return Problem(expression, tuple(steps), str(total), is_core=True)


def core_problems(name: str, min_terms: int = 2, max_terms: int = 4) -> Iterator[Problem]:
    """An endless stream of sums and differences: terms all of one digit, or all of two (`chain_sum`)."""
    items = _items("chain_sum", name, min_terms=min_terms, max_terms=max_terms, min_digits=1, max_digits=2)
    for item in items:
        problem = core_problem(item["metadata"]["expression"].replace(" ", ""))
        if problem is not None:
            if problem.answer != item["answer"]:
                raise AssertionError(f"{problem} is not worked as reasoning-gym's answer {item['answer']} says")
            yield problem


def mixed_problems(name: str, word_problems: float = 0.0) -> Iterator[tuple[Problem, random.Random]]:
    """An endless stream of problems, each with its own random generator.

    CORE_SHARE of them are of the core skill, the others are other short tasks.

    Args:
        word_problems: share of grade-school word problems (`gsm_symbolic`), which are the longest documents.
    """
    core = core_problems(f"{name}/core")
    others = [
        (_equations(f"{name}/equations"), 0.06),
        (_legs(f"{name}/legs"), 0.07),
        (_products(f"{name}/products"), 0.12),
        (_word_problems(f"{name}/words"), word_problems),
    ]
    streams, weights = [core, *(stream for stream, _ in others)], [weight for _, weight in others]
    weights = [CORE_SHARE, *weights]
    index = 0
    while True:
        dice = random.Random(f"{name}/{index}")
        yield next(dice.choices(streams, weights)[0]), dice
        index += 1


def _items(task: str, name: str, **settings: Any) -> Iterator[dict[str, Any]]:
    import reasoning_gym

    # gsm_symbolic draws a template for every item when it is created, so the size is limited
    data = reasoning_gym.create_dataset(task, seed=stream_seed(name), size=_ITEMS, **settings)
    index = 0
    while True:
        yield data[index % _ITEMS if task == "gsm_symbolic" else index]
        index += 1


def _equations(name: str) -> Iterator[Problem]:
    settings = {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 12, "operators_weights": [0.5, 0.5, 0]}
    for item in _items("simple_equations", name, **settings):
        variable = item["metadata"]["variable"]
        equation = item["metadata"]["equation"].replace(" ", "")
        yield Problem(f"Solve {equation}", (f"{variable}={item['answer']}",), item["answer"])


def _products(name: str) -> Iterator[Problem]:
    for item in _items("products", name, min_digits=1, max_digits=2):
        expression = item["metadata"]["expression"].replace(" ", "")
        yield Problem(expression, (f"{expression}={item['answer']}",), item["answer"])


@cache
def _legs_of() -> dict[str, int]:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    return dict(ANIMALS)


def _legs(name: str) -> Iterator[Problem]:
    settings = {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 6}
    for item in _items("leg_counting", name, **settings):
        animals = item["metadata"]["animals"]
        legs = [(count, _legs_of()[animal]) for animal, count in animals.items()]
        steps = [f"{count}*{each}={count * each}" for count, each in legs]
        if len(legs) == 2:
            first, second = (count * each for count, each in legs)
            steps.append(f"{first}+{second}={first + second}")
        herd = " and ".join(f"{count} {animal}{'' if count == 1 else 's'}" for animal, count in animals.items())
        yield Problem(f"Legs of {herd}?", tuple(steps), item["answer"])


_ASK_ENDS = re.compile(r" Give (?:the result|only|your answer)[^.]*\..*$", re.DOTALL)


def _word_problems(name: str) -> Iterator[Problem]:
    for item in _items("gsm_symbolic", name, difficulty=1.0):
        worked = item["metadata"]["answer_cot"].split("####")[0].strip()
        if len(item["question"]) + len(worked) <= 480:
            yield Problem(_ASK_ENDS.sub("", item["question"]), (), item["answer"], prose=worked)
