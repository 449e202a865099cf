"""How a row becomes the text of a document."""

from collections.abc import Callable
from typing import Any

from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow, Row, field_of, kind_of, text_of
from megatron_octo.recipe.data import Format, InstructionFormat, LongCotFormat, QuestionAnswerFormat, TextFormat
from megatron_octo.recipe.templates import question_answer_parts

_SPEAKER = {
    "user": "User", "human": "User", "assistant": "Assistant", "gpt": "Assistant", "system": "System"
}  # fmt: skip


class Formatter:
    """A recipe's format as a function from a row to the text of its document. It can be pickled."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._write = _writer_of(format)

    @property
    def fields(self) -> list[str]:
        """The fields that a row must have."""
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
            BadRow: the row is not an object, lacks a field, has one that is not text or is empty, or could not be read.
        """
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, dict):
            raise BadRow("not an object")
        text = self._write(row)
        if len(text) > MOST_ROW_BYTES:
            raise BadRow(f"a document of more than {MOST_ROW_BYTES >> 20} M characters")
        return text

    def __getstate__(self) -> Format:
        return self._format

    def __setstate__(self, format: Format) -> None:
        self._format = format
        self._write = _writer_of(format)


def _writer_of(format: Format) -> Callable[[Row], str]:
    match format:
        case TextFormat():
            return lambda row: text_of(row, format.text)
        case QuestionAnswerFormat():
            return _question_answer(format)
        case InstructionFormat(messages=str(messages)):
            return lambda row: _conversation(row, messages)
        case InstructionFormat():
            return lambda row: f"User:{text_of(row, format.user)}\nAssistant:{text_of(row, format.assistant)}"
        case LongCotFormat(thought=str(thought)):
            return lambda row: (
                f"{text_of(row, format.question)}\n<think>{text_of(row, thought)}</think>{text_of(row, format.answer)}"
            )
        case LongCotFormat():
            return lambda row: f"{text_of(row, format.question)}\n{text_of(row, format.answer)}"


def _question_answer(format: QuestionAnswerFormat) -> Callable[[Row], str]:
    before, first, between, _, after = question_answer_parts(format.template)
    fields = (format.question, format.answer) if first == "{question}" else (format.answer, format.question)
    return lambda row: f"{before}{text_of(row, fields[0])}{between}{text_of(row, fields[1])}{after}"


def _conversation(row: Row, field: str) -> str:
    lines, speakers = [], set()
    for role, message in messages_of(row, field):
        speaker = _SPEAKER.get(role)
        if speaker is None:
            raise BadRow(f"a message in {field!r} has a role other than user, assistant and system")
        speakers.add(speaker)
        lines.append(f"{speaker}:{content_of(message)}")
    if not {"User", "Assistant"} <= speakers:
        raise BadRow(f"field {field!r} lacks a user's or an assistant's message")
    return "\n".join(lines)


def messages_of(row: Any, field: str) -> list[tuple[str, Row]]:
    """The messages in a field with their roles, written {role, content} or as ShareGPT's {from, value}.

    Raises:
        BadRow: there is no such field, or it is not a list of messages.
    """
    messages = field_of(row, field)
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow(f"field {field!r} is not a list of messages")
    found = []
    for message in messages:
        # in Parquet every message has the keys of all messages, with null in those that are not its own
        role = message.get("from", "") if message.get("role") is None else message["role"]
        if not isinstance(role, str):
            raise BadRow(f"a message in {field!r} has a role that is {kind_of(role)}, not text")
        found.append((role, message))
    return found


def content_of(message: Row) -> str:
    """The text of a message.

    Raises:
        BadRow: it is not text, or empty.
    """
    return text_of(message, "value" if message.get("content") is None and "value" in message else "content")
