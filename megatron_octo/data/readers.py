"""First steps of a pipeline: rows of a source as documents, with every row that cannot be one counted.

These build on datatrove's readers. Its `JsonlReader` and `ParquetReader` drop what they cannot read with a line in
a log, and share a source out by whole files: here bad rows are counted by reason with their file and line, and one
large file is read by many tasks.
"""

from collections.abc import Sequence
from contextlib import closing

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers.base import BaseReader

from megatron_octo.data.formats import Formatter
from megatron_octo.data.rows.files import Piece, open_rows
from megatron_octo.data.rows.row import BadRow
from megatron_octo.data.tally import Tally


class FileRows(BaseReader):
    """Rows of local files: each task reads the piece of its rank."""

    name = "Files"

    def __init__(self, pieces: Sequence[Piece], formatter: Formatter, tally: Tally) -> None:
        super().__init__()
        self._pieces, self._format, self._tally = pieces, formatter, tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        piece, tally, format = self._pieces[rank], self._tally, self._format
        with closing(open_rows(piece, format.fields)) as rows:
            for row in rows:
                tally.rows += 1
                tally.done = rows.read
                try:
                    text = format(row)
                except BadRow as reason:
                    tally.bad_row(str(reason), piece.path, rows.number)
                    continue
                yield Document(text, id="")
        tally.lines[piece.path] = rows.number
        tally.done = piece.weight


class BuiltinDocuments(BaseReader):
    """A built-in corpus, made as it is read, by one task: that its texts differ is known only in one place."""

    name = "Built-in corpus"

    def __init__(self, corpus: str, documents: int, seed: int, heldout: Sequence[str], tally: Tally) -> None:
        super().__init__()
        self._arguments, self._tally = (corpus, documents, seed, heldout), tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        from megatron_octo.data.corpora import make_corpus

        for text in make_corpus(*self._arguments):
            self._tally.rows += 1
            self._tally.done += 1
            yield Document(text, id="")
