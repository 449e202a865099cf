"""Problems from a file. Every row is checked; rows that cannot be used are counted by reason."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_octo.data.formats import content_of, messages_of
from megatron_octo.data.rows.files import read_rows
from megatron_octo.data.rows.row import BadRow, field_of, fields_seen, text_of
from megatron_octo.errors import DataError
from megatron_octo.grading.pool import Graders
from megatron_octo.reading.text import expanded
from megatron_octo.recipe.rl import PromptFile
from megatron_octo.rl.golds import check_gold, read_gold

_SHOWN = 4
_ROLES = {"human": "user", "gpt": "assistant"}

Render = Callable[[list[dict[str, str]]], str]
"""Turns the messages of a chat into the text that the model gets."""


@dataclass(frozen=True)
class Prompt:
    """A problem and its gold answer."""

    problem: str
    answer: str
    chat: str | None = None
    """The chat as text, in the tokenizer's chat template. If it is set, the recipe's template is not used."""

    def text(self, template: str) -> str:
        """The text that the model gets."""
        return template.format(prompt=self.problem) if self.chat is None else self.chat


def read_prompt_file(settings: PromptFile, render: Render) -> list[Prompt]:
    """The problems of a file, up to `settings.count`. Prints how many rows were left out.

    Args:
        render: for chats; called only with `settings.chat`.

    Raises:
        DataError: the file cannot be read or holds no rows, or the share of rows that cannot be used is above
            `max_bad_share`; with reasons and row numbers.
    """
    path = expanded(settings.path, DataError)
    prompts: list[Prompt] = []
    bad: dict[str, list[int]] = defaultdict(list)
    with _Compare() as compare:
        for number, row in read_rows(path, (settings.prompt_key, settings.answer_key)):
            try:
                prompt = _prompt_of(row, settings, render)
                check_gold(prompt.answer, settings.answer_key, compare)
            except BadRow as reason:
                bad[str(reason)].append(number)
            else:
                prompts.append(prompt)
    _report_bad_rows(path, len(prompts), bad, settings.max_bad_share)
    if not prompts:
        raise DataError(f"{path}: holds no rows; name a file with problems")
    return prompts[: settings.count]


def read_problems(path: Path, key: str, named_by: str) -> Iterator[str]:
    """The problems of a benchmark.

    Args:
        named_by: the setting that holds the key, for messages.

    Raises:
        DataError: the file cannot be read, or a row has no text under the key.
    """
    for number, row in read_rows(expanded(path, DataError), (key,)):
        try:
            yield text_of(row, key)
        except BadRow as reason:
            raise DataError(f"{path}, row {number}: {reason}{_seen(row)}; set {named_by}") from None


def _prompt_of(row: Any, settings: PromptFile, render: Render) -> Prompt:
    for key, named_by in ((settings.prompt_key, "prompt_key"), (settings.answer_key, "answer_key")):
        try:
            field_of(row, key)
        except BadRow as reason:
            raise BadRow(f"{reason}{_seen(row)}; set {named_by}" if isinstance(row, dict) else str(reason)) from None
    chat: str | None = None
    if settings.chat:
        problem, chat = _chat_of(row, settings.prompt_key, render)
    else:
        problem = _problem_of(row, settings.prompt_key)
    return Prompt(problem, read_gold(row, settings.answer_key, settings.answer_after), chat)


def _problem_of(row: Any, key: str) -> str:
    value = field_of(row, key)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        raise BadRow(f"field {key!r} is a chat, not text; set chat: true, or name a field of text")
    return text_of(row, key)


def _chat_of(row: Any, key: str, render: Render) -> tuple[str, str]:
    messages = [{"role": _ROLES.get(role, role), "content": content_of(m)} for role, m in messages_of(row, key)]
    if not messages or messages[-1]["role"] != "user":
        raise BadRow(f"field {key!r} is a chat that does not end with what the user says")
    try:
        text = render(messages)
    except Exception as error:  # templates raise errors of their own types
        raise BadRow(f"field {key!r} is a chat that the chat template refuses ({type(error).__name__})") from None
    return messages[-1]["content"], text


def _seen(row: Any) -> str:
    return f" (it has {fields_seen(row)})" if isinstance(row, dict) else ""


def _report_bad_rows(path: Path, good: int, bad: dict[str, list[int]], limit: float) -> None:
    count = sum(map(len, bad.values()))
    reasons = [
        f"{len(numbers):,} x {reason}: row {', '.join(map(str, numbers[:_SHOWN]))}"
        + (", ..." if len(numbers) > _SHOWN else "")
        for reason, numbers in sorted(bad.items(), key=lambda item: -len(item[1]))[:_SHOWN]
    ]
    if not count:
        return
    if count <= limit * (count + good):
        print(f"{path}: left out {count} rows that cannot be used ({'; '.join(reasons)})")
        return
    raise DataError(
        f"{path}: {count:,} of {count + good:,} rows cannot be used, and max_bad_share is {limit}\n"
        + "\n".join(f"  {reason}" for reason in reasons)
        + "\n  correct them, or raise max_bad_share"
    )


class _Compare(ExitStack):
    """Compares answers in a grading process, which starts with the first comparison."""

    _graders: Graders | None = None

    def __call__(self, answer: str, gold: str) -> bool:
        if self._graders is None:
            self._graders = self.enter_context(Graders(1))
        return self._graders.grade(f"\\boxed{{{answer}}}", gold).is_right
