"""Files that are one JSON value: a list, which is read item by item, or an object."""

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_octo.data.rows.containers import BOM
from megatron_octo.data.rows.json_value import TOO_LONG, lenient_decoder, row_or_reason
from megatron_octo.data.rows.row import MOST_ROW_BYTES, BadRow, has_field
from megatron_octo.data.rows.streams import Stream
from megatron_octo.errors import DataError

MOST_WHOLE_BYTES = 64 << 20
"""Largest JSON object that is read as a file of its own. Lists are read item by item and have no such limit."""
_FIRST_READ = 64 << 10
_SPACE = " \t\r\n"
_AFTER_NUMBER = tuple(",]" + _SPACE)


class ListRows:
    """The items of a JSON list of any length. Only one item is in memory at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._decoder = stream, lenient_decoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self.number = 0
        """Index of the last item; at the end the number of items."""

    @property
    def progress(self) -> int:
        """Bytes of the file that were read, as it is stored."""
        return self._stream.position

    def __iter__(self) -> Iterator[Any]:
        if self._take() != "[":
            raise self._error(0, "not a list")
        number = 0
        if self._peek() == "]":
            self._at += 1
            self._check_end(0)
            return
        while True:
            self._peek()
            value = self._item(number)
            self.number = number
            yield value
            number += 1
            match self._take():
                case ",":
                    continue
                case "]":
                    break
                case "":
                    raise self._error(number, "the file ends in the middle of the list; is it cut short?")
                case other:
                    raise self._error(number, f"{other!r} instead of a comma")
        self._check_end(number)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _check_end(self, number: int) -> None:
        self.number = number
        if self._peek():
            raise self._error(number, "something follows the list")

    def _item(self, number: int) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._error(number, "nested too deep") from None
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > MOST_ROW_BYTES:
                    why = f"not JSON ({error.msg}); is it cut short?" if self._ended else TOO_LONG
                    raise self._error(number, why) from None
            else:
                # a number may continue beyond the text in memory
                if self._ended or isinstance(value, dict | list | str) or self._text[end : end + 1] in _AFTER_NUMBER:
                    self._at = end
                    return value
            self._more()

    def _take(self) -> str:
        """The next character that is not white space, consumed; empty at the end."""
        character = self._peek()
        self._at += len(character)
        return character

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if (character := self._text[self._at]) not in _SPACE:
                    return character
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def _more(self) -> None:
        """Read as much again as is in memory, so that a long item is parsed only a few times."""
        self._text, self._at = self._text[self._at :], 0
        data = self._stream.read(max(_FIRST_READ, len(self._text)))
        self._ended = not data
        try:
            self._text += self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError:
            raise self._error(self.number, "not UTF-8; save it as UTF-8") from None

    def _error(self, number: int, why: str) -> DataError:
        return DataError(
            f"{self._stream.path}: one JSON list, by its first character, but unreadable at item {number + 1}: {why} "
            "(in JSON lines, each line is one object)"
        )


class ObjectRows:
    """A file that is one JSON object: it is a row if it has one of the fields, otherwise its values are rows."""

    def __init__(self, stream: Stream, fields: Sequence[str]) -> None:
        self._stream, self._fields = stream, fields
        self.number = self.progress = 0

    def __iter__(self) -> Iterator[Any]:
        raw = read_whole(self._stream)
        value: Any = BadRow(f"longer than {MOST_WHOLE_BYTES >> 20} MiB") if raw is None else row_or_reason(raw)
        self.progress = self._stream.position
        is_row = not isinstance(value, dict) or any(has_field(value, field) for field in self._fields)
        if is_row or not all(isinstance(item, dict) for item in value.values()):
            yield value
            self.number = 1
            return
        for self.number, item in enumerate(value.values()):
            yield item
        self.number = len(value)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_whole(stream: Stream) -> bytes | None:
    """The rest of a stream, without a byte order mark; None if it has more than MOST_WHOLE_BYTES."""
    raw = stream.read(MOST_WHOLE_BYTES + 1)
    return None if len(raw) > MOST_WHOLE_BYTES else raw.removeprefix(BOM)
