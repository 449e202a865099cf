"""First steps of a pipeline: the rows of a source as documents. Rows that cannot be used are counted.

They build on datatrove's base reader. datatrove's `JsonlReader` and `ParquetReader` drop unreadable rows with a line in
a log, and distribute only whole files. Here bad rows are counted by reason with file and line, and many tasks can read
one large file.
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
    """Rows of local files. Each task reads the piece of its rank."""

    name = "Files"

    def __init__(self, pieces: Sequence[Piece], formatter: Formatter, tally: Tally) -> None:
        super().__init__()
        self._pieces, self._format, self._tally = pieces, formatter, tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        piece, tally, format = self._pieces[rank], self._tally, self._format
        with closing(open_rows(piece, format.fields)) as rows:
            for row in rows:
                tally.rows += 1
                tally.done = rows.progress
                try:
                    text = format(row)
                except BadRow as reason:
                    tally.bad_row(str(reason), piece.path, rows.number)
                    continue
                yield Document(text, id="")
        tally.lines[piece.path] = rows.number
        tally.done = piece.weight


class BuiltinDocuments(BaseReader):
    """A built-in corpus, generated as it is read. Only one task can ensure that its texts are all different."""

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
