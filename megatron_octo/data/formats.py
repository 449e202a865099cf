"""How a row becomes the text of a document."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from megatron_octo.errors import DataError
from megatron_octo.recipe.data import Format, InstructionFormat, LongCotFormat, QuestionAnswerFormat, TextFormat

Row = Mapping[str, Any]
_SPEAKER = {
    "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant", "system": "System"
}  # fmt: skip


class BadRow(Exception):
    """A row that cannot become a document. The message is the reason it is counted under."""


class Formatter:
    """A recipe's format as a function from a row to its text. Can be pickled."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._write = _writer_of(format)

    @property
    def fields(self) -> list[str]:
        """Fields that a row must have."""
        match self._format:
            case TextFormat(text=text):
                return [text]
            case QuestionAnswerFormat(question=question, answer=answer):
                return [question, answer]
            case InstructionFormat(messages=str(messages)):
                return [messages]
            case InstructionFormat(user=user, assistant=assistant):
                return [user, assistant]
            case LongCotFormat(question=question, thought=thought, answer=answer):
                return [question, answer] if thought is None else [question, thought, answer]

    def __call__(self, row: Any) -> str:
        """The document, without the end-of-document token.

        Raises:
            BadRow: the row is no object, lacks a field, or a field is not text or has none.
        """
        if not isinstance(row, dict):
            raise BadRow("not an object")
        return self._write(row)

    def __getstate__(self) -> Format:
        return self._format

    def __setstate__(self, format: Format) -> None:
        self._format = format
        self._write = _writer_of(format)


def _writer_of(format: Format) -> Callable[[Row], str]:
    match format:
        case TextFormat():
            return lambda row: _text(row, format.text)
        case QuestionAnswerFormat():
            return _question_answer(format)
        case InstructionFormat(messages=str(messages)):
            return lambda row: _conversation(row, messages)
        case InstructionFormat():
            return lambda row: f"User:{_text(row, format.user)}\nAssistant:{_text(row, format.assistant)}"
        case LongCotFormat(thought=str(thought)):
            return lambda row: (
                f"{_text(row, format.question)}\n<think>{_text(row, thought)}</think>{_text(row, format.answer)}"
            )
        case LongCotFormat():
            return lambda row: f"{_text(row, format.question)}\n{_text(row, format.answer)}"


def has_field(columns: Iterable[str], field: str) -> bool:
    """Whether rows of these columns can have a field; of `messages.1.content` only the first part is a column."""
    return field in columns or field.partition(".")[0] in columns


def columns_of(columns: Iterable[str], fields: Iterable[str]) -> list[str]:
    """The columns to read for these fields."""
    return [field if field in columns else field.partition(".")[0] for field in fields]


def _step(value: Any, part: str) -> Any:
    """One step of a dotted field: a key of an object, or a place in a list."""
    return value[int(part)] if isinstance(value, list) else value[part]


def _text(row: Row, field: str) -> str:
    try:
        # a dot steps into what is nested (`messages.1.content`), unless it is part of a column's name
        value = row[field] if field in row else functools.reduce(_step, field.split("."), row)
    except (KeyError, IndexError, ValueError, TypeError):
        raise BadRow(f"no field {field!r}") from None
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is {type(value).__name__}, not text")
    if not value or value.isspace():
        raise BadRow(f"field {field!r} is empty")
    return value


def _question_answer(format: QuestionAnswerFormat) -> Callable[[Row], str]:
    # split rather than str.format: a template may hold braces of its own, as \boxed{...} does
    parts = re.split(r"(\{question\}|\{answer\})", format.template)
    if sorted(parts[1::2]) != ["{answer}", "{question}"]:
        raise DataError(
            f"format.template = {format.template!r}: it must hold {{question}} and {{answer}} once each; "
            "e.g. 'Question:{question}\\nAnswer:{answer}'"
        )
    before, first, between, _, after = parts
    fields = (format.question, format.answer) if first == "{question}" else (format.answer, format.question)
    return lambda row: f"{before}{_text(row, fields[0])}{between}{_text(row, fields[1])}{after}"


def _conversation(row: Row, field: str) -> str:
    if field not in row:
        raise BadRow(f"no field {field!r}")
    messages = row[field]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow(f"field {field!r} is not a list of messages")
    lines, speakers = [], set()
    for message in messages:
        speaker = _SPEAKER.get(message.get("role", message.get("from", "")))
        if speaker is None:
            raise BadRow(f"a message in {field!r} has a role other than user, assistant and system")
        speakers.add(speaker)
        lines.append(f"{speaker}:{_text(message, 'content' if 'content' in message else 'value')}")
    if not {"User", "Assistant"} <= speakers:
        raise BadRow(f"field {field!r} lacks a user's or an assistant's message")
    return "\n".join(lines)
