"""Problems to practise on: read, checked, put into the template, and written as OpenRLHF reads them."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_octo.data.corpora.problems import core_problems, expressions_in
from megatron_octo.data.heldout import heldout_problems
from megatron_octo.data.manifest import MANIFEST, SourceManifest
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.rl import BuiltinPrompts, ProblemSet, PromptFile, RlSection
from megatron_octo.rl.reward import MAX_CHARACTERS, parses
from megatron_octo.runtime.run_folder import RunFolder

_SPACE = re.compile(r"\s+")
_TERM = re.compile(r"\d+")
_SHOWN = 4
_PATIENCE = 200
"""Problems looked at for one that is wanted."""


@dataclass(frozen=True)
class Prompt:
    """A problem and its gold answer."""

    problem: str
    answer: str


def read_prompts(
    settings: PromptFile | BuiltinPrompts, recipe: Recipe, run: RunFolder, seed: int, without: Collection[str] = ()
) -> list[Prompt]:
    """The problems that settings name.

    Args:
        without: problems that built-in ones are not to be: those that are practised, where these are for validation.

    Raises:
        DataError: no file, rows without the named keys, or answers that nothing can be compared with; with where.
    """
    if isinstance(settings, BuiltinPrompts):
        return _builtin(settings, recipe, run, seed, without)
    path = Path(settings.path)
    prompts, bad = [], []
    for number, row in _rows_with(path, settings.prompt_key, settings.answer_key, named_by="prompt_key and answer_key"):
        problem, answer = str(row[settings.prompt_key]), str(row[settings.answer_key])
        if not problem.strip() or not parses(answer):
            bad.append(f"row {number}: {answer[:60]!r}")
            continue
        prompts.append(Prompt(problem, answer))
    if bad and len(bad) <= settings.max_bad_share * (len(bad) + len(prompts)):
        print(f"{path}: left out {len(bad)} rows that no response can be compared with ({'; '.join(bad[:_SHOWN])})")
    elif bad:
        shown = "; ".join(bad[:_SHOWN]) + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        raise DataError(
            f"{path}: {len(bad)} rows whose problem is empty, or whose answer is empty or longer than "
            f"{MAX_CHARACTERS} characters, which no response can be compared with ({shown}); take them out, or raise "
            "max_bad_share"
        )
    if not prompts:
        raise DataError(f"{path}: holds no rows; name a file with problems")
    return prompts[: settings.count]


def _rows_with(path: Path, *keys: str, named_by: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows that have the keys; `named_by`: the settings that name the keys."""
    if not path.is_file():
        raise DataError(f"rl: {path}: there is no such file; name a .json or .jsonl file")
    for number, row in enumerate(_rows(path), start=1):
        if missing := [key for key in keys if key not in row]:
            raise DataError(
                f"{path}, row {number}: no key {', '.join(map(repr, missing))} (it has {', '.join(map(repr, row))}); "
                f"set {named_by}"
            )
        yield number, row


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); give a list of objects, or one object a line") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: rows that are no objects; give a list of objects, or one object a line")
    return rows


def _builtin(
    settings: BuiltinPrompts, recipe: Recipe, run: RunFolder, seed: int, without: Collection[str]
) -> list[Prompt]:
    known = {problem.question for problem in heldout_problems(recipe)} | trained_expressions(recipe, run) | set(without)
    prompts: dict[str, Prompt] = {}
    stream = core_problems(f"rl/{seed}", settings.min_terms, settings.max_terms)
    for problem in islice(stream, settings.count * _PATIENCE):
        has_digits = all(len(term) == settings.digits for term in _TERM.findall(problem.question))
        if has_digits and problem.question not in known:
            prompts[problem.question] = Prompt(problem.question, problem.answer)
        if len(prompts) == settings.count:
            return list(prompts.values())
    raise DataError(
        f"rl prompts: {settings.count} built-in problems of {settings.min_terms} to {settings.max_terms} terms are "
        f"asked for, and {len(prompts)} that no text holds were found; lower the count, allow more terms "
        "or digits, or keep some out of the text (data.practice_problems)"
    )


def trained_expressions(recipe: Recipe, run: RunFolder) -> set[str]:
    """Every sum and difference in the prepared text of the recipe's sources."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    from megatron_octo.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(recipe.model, run.tokenizer)
    found: set[str] = set()
    for source in recipe.data.sources:
        path = run.source(source) / MANIFEST
        if not path.is_file():
            raise DataError(f"{path}: {source} is not prepared; run `octo data prepare {recipe.name}` first")
        manifest = SourceManifest.model_validate_json(path.read_text())
        for prefix in manifest.prefixes(run.source(source), "train"):
            data = IndexedDataset(str(prefix))
            for start in range(0, len(data), 256):
                texts = tokenizer.batch_decode([data[i] for i in range(start, min(start + 256, len(data)))])
                found.update(expression for text in texts for expression in expressions_in(text))
    return found


def short_enough(prompts: list[Prompt], rl: RlSection, model: Path) -> list[Prompt]:
    """The prompts that fit into `max_prompt_tokens` with the template around them; how many do not is printed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    texts = [rl.prompt_template.format(prompt=prompt.problem) for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= rl.max_prompt_tokens]
    if len(kept) < len(prompts):
        print(
            f"left out {len(prompts) - len(kept)} of {len(prompts)} prompts longer than rl.max_prompt_tokens = "
            f"{rl.max_prompt_tokens} (the longest has {max(lengths)})"
        )
    return kept


def prompt_rows(prompts: Sequence[Prompt], template: str, datasource: str) -> str:
    """JSON lines of `input`, `label` and `datasource`."""
    rows = [{"input": template.format(prompt=p.problem), "label": p.answer, "datasource": datasource} for p in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def shared_with(prompts: Sequence[Prompt], sets: Mapping[str, ProblemSet]) -> dict[str, int]:
    """How many prompts stand in each benchmark.

    Raises:
        DataError: a file that is missing, or has rows without the named key.
    """
    shared = {}
    for name, problems in sets.items():
        rows = _rows_with(Path(problems.path), problems.problem_key, named_by=f"rl.test_sets.{name}.problem_key")
        shared[name] = count_shared(prompts, (str(row[problems.problem_key]) for _, row in rows))
    return shared


def count_shared(prompts: Iterable[Prompt], others: Iterable[str]) -> int:
    """How many problems stand among other texts too, but for white space."""
    known = set(_plain(others))
    return sum(text in known for text in _plain(p.problem for p in prompts))


def _plain(texts: Iterable[str]) -> Iterator[str]:
    return (_SPACE.sub(" ", text).strip() for text in texts)
