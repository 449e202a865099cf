"""Prompts of an RL run: read, checked, put into the template, and written as OpenRLHF reads them."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from megatron_octo.data.corpora.problems import core_problems, expressions_in
from megatron_octo.data.heldout import heldout_problems
from megatron_octo.data.manifest import MANIFEST, read_manifest, verify_manifest
from megatron_octo.data.tokenizer import load_tokenizer, open_tokenizer
from megatron_octo.errors import DataError
from megatron_octo.recipe import Recipe
from megatron_octo.recipe.rl import BuiltinPrompts, ProblemSet, PromptFile, RlSection
from megatron_octo.rl.prompt_file import Prompt, Render, read_problems, read_prompt_file
from megatron_octo.runtime.run_folder import RunFolder

_SPACE = re.compile(r"\s+")
_TERM = re.compile(r"\d+")
_TRIES = 200
"""Built-in problems generated, at most, for each one that is taken."""


def read_prompts(
    settings: PromptFile | BuiltinPrompts, recipe: Recipe, run: RunFolder, seed: int, exclude: Collection[str] = ()
) -> list[Prompt]:
    """The problems of a file, or built-in ones, as `settings` say.

    Args:
        exclude: problems that must not be among built-in ones. For validation, these are the training prompts.

    Raises:
        DataError: the file cannot be read, or too many of its rows cannot be used; with reasons and row numbers.
            Or there are too few built-in problems.
    """
    if isinstance(settings, BuiltinPrompts):
        return _builtin(settings, recipe, run, seed, exclude)
    return read_prompt_file(settings, _chat_template(recipe, run) if settings.chat else _no_chat)


def _no_chat(messages: list[dict[str, str]]) -> str:
    raise AssertionError("called without settings.chat")


def _chat_template(recipe: Recipe, run: RunFolder) -> Render:
    tokenizer = load_tokenizer(recipe.model, run.tokenizer)
    if not tokenizer.chat_template:
        raise DataError(
            f"rl prompts: chat is set, but {recipe.model.tokenizer!r} has no chat template; choose a tokenizer that "
            "has one (chat_template.jinja), or name a field of text"
        )
    return lambda messages: cast(
        str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )


def _builtin(
    settings: BuiltinPrompts, recipe: Recipe, run: RunFolder, seed: int, exclude: Collection[str]
) -> list[Prompt]:
    known = {problem.question for problem in heldout_problems(recipe)} | trained_expressions(recipe, run) | set(exclude)
    prompts: dict[str, Prompt] = {}
    stream = core_problems(f"rl/{seed}", settings.min_terms, settings.max_terms)
    for problem in islice(stream, settings.count * _TRIES):
        has_digits = all(len(term) == settings.digits for term in _TERM.findall(problem.question))
        if has_digits and problem.question not in known:
            prompts[problem.question] = Prompt(problem.question, problem.answer)
        if len(prompts) == settings.count:
            return list(prompts.values())
    raise DataError(
        f"rl prompts: {settings.count} built-in problems of {settings.min_terms} to {settings.max_terms} terms are "
        f"asked for, and {len(prompts)} were found that the training text does not contain; lower the count, allow "
        "more terms or digits, or keep some out of the text (data.practice_problems)"
    )


def trained_expressions(recipe: Recipe, run: RunFolder) -> set[str]:
    """Every sum and difference in the prepared training text of the recipe's sources.

    Raises:
        DataError: a source is not prepared, or is no longer what was prepared.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenizer = load_tokenizer(recipe.model, run.tokenizer)
    found: set[str] = set()
    for source in recipe.data.sources:
        folder = run.source(source)
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder}: {source} is not prepared; run `octo data prepare {recipe.name}` first")
        manifest = read_manifest(folder)
        verify_manifest(folder, manifest, splits=("train",))
        for prefix in manifest.prefixes(folder, "train"):
            data = IndexedDataset(str(prefix))
            for start in range(0, len(data), 256):
                texts = tokenizer.batch_decode([data[i] for i in range(start, min(start + 256, len(data)))])
                found.update(expression for text in texts for expression in expressions_in(text))
    return found


def short_enough(prompts: list[Prompt], rl: RlSection, model: Path) -> list[Prompt]:
    """The prompts that fit into `max_prompt_tokens` with the template around them. Prints how many do not."""
    tokenizer = open_tokenizer(model, str(model))
    texts = [prompt.text(rl.prompt_template) for prompt in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= rl.max_prompt_tokens]
    if len(kept) < len(prompts):
        print(
            f"left out {len(prompts) - len(kept)} of {len(prompts)} prompts longer than rl.max_prompt_tokens = "
            f"{rl.max_prompt_tokens} (the longest has {max(lengths)})"
        )
    return kept


def prompt_rows(prompts: Sequence[Prompt], template: str, datasource: str) -> str:
    """The prompts as JSON lines with `input` (in the template), `label` (the gold answer) and `datasource`."""
    rows = [{"input": p.text(template), "label": p.answer, "datasource": datasource} for p in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def shared_with(prompts: Sequence[Prompt], sets: Mapping[str, ProblemSet]) -> dict[str, int]:
    """How many prompts each benchmark contains, by the benchmark's name.

    Raises:
        DataError: a file cannot be read, or has rows without text under its key.
    """
    return {
        name: count_shared(
            prompts,
            read_problems(Path(problems.path), problems.problem_key, named_by=f"rl.test_sets.{name}.problem_key"),
        )
        for name, problems in sets.items()
    }


def count_shared(prompts: Iterable[Prompt], others: Iterable[str]) -> int:
    """How many problems are among other texts too, apart from white space."""
    known = set(_plain(others))
    return sum(text in known for text in _plain(p.problem for p in prompts))


def _plain(texts: Iterable[str]) -> Iterator[str]:
    return (_SPACE.sub(" ", text).strip() for text in texts)
