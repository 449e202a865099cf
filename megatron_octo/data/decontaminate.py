"""The pipeline step that drops documents with evaluation problems in them.

datatrove's own n-gram step is not used: its index can only be built from the tasks of lighteval (another package, which
downloads them), its word splitter downloads models, and it never matches texts shorter than n words, as many maths
problems are.
"""

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from megatron_octo.data.corpora.problems import expressions_in
from megatron_octo.data.ngrams import NGramIndex, NGramSearch
from megatron_octo.data.rows.files import MOST_SMALL_BYTES, read_rows, regular_size
from megatron_octo.data.rows.row import BadRow, checked_text, field_of, fields_seen, kind_of
from megatron_octo.data.tally import Tally
from megatron_octo.errors import DataError
from megatron_octo.reading.text import expanded, shown_path
from megatron_octo.recipe.data import Decontamination, EvaluationText
from megatron_octo.runtime.files import sha256_of

HELDOUT = "heldout"
"""The name under which documents with the recipe's own held-out problems are counted."""
_BATCH = 1000


class Decontaminate(PipelineStep):
    """Drops documents that share a run of words with an evaluation problem, or contain a held-out expression."""

    type = "Filter"
    name = "Decontamination"

    def __init__(self, index: NGramIndex, heldout: Collection[str], tally: Tally) -> None:
        super().__init__()
        self._index, self._heldout, self._tally = index, frozenset(heldout), tally

    @cached_property
    def _search(self) -> NGramSearch:
        return NGramSearch(self._index)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        documents = iter(data)
        while batch := list(islice(documents, _BATCH)):
            yield from self._clean(batch)

    def _clean(self, batch: list[Document]) -> Iterator[Document]:
        names = self._index.names
        for document, match in zip(batch, self._search.first_match([d.text for d in batch]), strict=True):
            if match is not None:
                self._tally.contaminated[names[match]] += 1
            elif self._heldout and not self._heldout.isdisjoint(expressions_in(document.text)):
                self._tally.contaminated[HELDOUT] += 1
            else:
                yield document


def read_protected(settings: Decontamination) -> dict[str, Sequence[str]]:
    """The texts of every evaluation set that a recipe decontaminates against.

    Raises:
        DataError: a file is missing, too large, damaged, or not a file of rows; or a row lacks a field.
    """
    return {
        name: [text for path in evaluation.paths for text in _texts(name, path, evaluation)]
        for name, evaluation in settings.against.items()
    }


def protected_problems(settings: Decontamination, rows: int) -> list[str]:
    """Problems in the first rows of the evaluation files; empty if there are none.

    Args:
        rows: number of rows to read of each file.
    """
    problems = []
    for name, evaluation in settings.against.items():
        for path in evaluation.paths:
            try:
                with closing(_texts(name, path, evaluation)) as texts:
                    for _ in islice(texts, rows):
                        pass
            except DataError as error:
                key = f"data.decontamination.against.{name}"
                message = str(error)
                problems.append(message if message.startswith(key) else f"{key}: {message}")
    return problems


def protected_digest(settings: Decontamination) -> dict[str, list[str]]:
    """SHA-256 of every evaluation file, for the settings digest.

    Raises:
        DataError: a file is missing.
    """
    return {
        name: [sha256_of(_existing(name, path)) for path in evaluation.paths]
        for name, evaluation in settings.against.items()
    }


def _existing(name: str, named: str) -> Path:
    key = f"data.decontamination.against.{name}.paths"
    path = expanded(named, DataError, key)
    try:
        if not path.exists():
            raise DataError(f"{key}: {shown_path(path)} does not exist; correct it, or remove {name!r}")
    except OSError as error:
        raise DataError(f"{key}: {shown_path(path)}: {error.strerror}; correct it, or remove {name!r}") from None
    if (size := regular_size(path)) > MOST_SMALL_BYTES:
        raise DataError(
            f"{key}: {path}: {size:,} bytes, and at most {MOST_SMALL_BYTES:,} are read; is it the right file?"
        )
    return path


def _texts(name: str, named: str, evaluation: EvaluationText) -> Generator[str]:
    key, path, number = f"data.decontamination.against.{name}", _existing(name, named), 0
    for number, row in read_rows(path, evaluation.fields):
        if isinstance(row, BadRow):
            raise DataError(f"{key}: item {number} of {path}: {row}; correct the file")
        for field in evaluation.fields:
            try:
                yield from _protected(row, field)
            except BadRow as reason:
                raise DataError(
                    f"{key}: item {number} of {path} has no text in field {field!r}; correct `fields` (it has "
                    f"{fields_seen(row)}): {reason}"
                ) from None
    if not number:
        raise DataError(f"{key}: {path} holds no rows; correct it, or remove {name!r}")


def _protected(row: Any, field: str) -> list[str]:
    value = field_of(row, field)
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise BadRow(f"it is {kind_of(text)}")
        if text.strip():
            checked_text(text, field)
    return texts
