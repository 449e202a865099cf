"""Problems that are kept out of training text: held-out ones, to measure what a run learned, and ones for RL."""

import json
from pathlib import Path
from typing import Any

from megatron_octo.data.corpora.problems import CORPUS_VERSION, Problem, core_problems
from megatron_octo.data.corpora.roles import prompt
from megatron_octo.data.rows.files import read_rows
from megatron_octo.data.rows.row import BadRow, text_of
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.files import write_text_atomically

TERMS = 3
_KEYS = ("question", "prompt", "answer")
_MOST_BYTES = 64 << 20
# there are about 3,000 sums of three one-digit terms, and training text needs most of these easy ones
_SHORT_LIMIT = 256


def heldout_problems(recipe: Recipe) -> list[Problem]:
    """The recipe's held-out problems: different sums of three terms, a pure function of count and seed.

    They are kept out of training text by comparing texts, whatever the seeds: `make_corpus` never writes a document
    with one of these expressions in it, and other sources are searched for them (`decontaminate`).
    """
    count = recipe.data.heldout_problems
    chosen: dict[str, Problem] = {}
    short = 0
    stream = core_problems(f"heldout/{recipe.data.heldout_seed}", TERMS, TERMS)
    while len(chosen) < count:
        problem = next(stream)
        is_short = _is_short(problem)
        if problem.question in chosen or (is_short and short == _SHORT_LIMIT):
            continue
        short += is_short
        chosen[problem.question] = problem
    return list(chosen.values())


def practice_problems(recipe: Recipe) -> list[Problem]:
    """The problems kept for RL: different sums of three one-digit terms, none of them among the held-out ones.

    They are kept out of text in the same way.
    """
    count = recipe.data.practice_problems
    held = {problem.question for problem in heldout_problems(recipe)}
    chosen: dict[str, Problem] = {}
    stream = core_problems(f"practice/{recipe.data.heldout_seed}", TERMS, TERMS)
    while len(chosen) < count:
        problem = next(stream)
        if _is_short(problem) and problem.question not in held:
            chosen[problem.question] = problem
    return list(chosen.values())


def _is_short(problem: Problem) -> bool:
    return len(problem.question) == 2 * TERMS - 1


def heldout_settings(recipe: Recipe) -> dict[str, int]:
    """The settings that decide which problems are kept out of text, for the settings digest."""
    data = recipe.data
    settings = {"problems": data.heldout_problems, "seed": data.heldout_seed, "version": CORPUS_VERSION}
    # left out if 0, so that sources prepared before this setting existed keep their digest
    return settings | ({"practice": data.practice_problems} if data.practice_problems else {})


def write_heldout(problems: list[Problem], path: Path) -> None:
    """Write problems as JSON lines: question, prompt (in the qa format) and answer."""
    rows = [{"question": p.question, "prompt": prompt(p.question), "answer": p.answer} for p in problems]
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_heldout(path: Path) -> list[dict[str, Any]]:
    """The rows of `write_heldout`.

    Raises:
        DataError: the file is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no held-out problems here; run `octo data prepare` (data.heldout_problems above 0)")
    rows = []
    for number, row in read_rows(path, _KEYS, _MOST_BYTES):
        try:
            rows.append({key: text_of(row, key) for key in _KEYS})
        except BadRow as reason:
            raise DataError(f"{path}, line {number}: {reason}; remove the file and run `octo data prepare`") from None
    if not rows:
        raise DataError(f"{path}: empty; remove it and run `octo data prepare`")
    return rows
