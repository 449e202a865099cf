"""First steps of a pipeline: rows of a source as documents, with every row that cannot be one counted.

These build on datatrove's readers. Its `JsonlReader` and `ParquetReader` drop what they cannot read with a line in
a log, and share a source out by whole files: here bad rows are counted by reason with their file and line, and one
large file is read by many tasks.
"""

import gzip
import io
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import IO, Any

import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.readers.base import BaseReader
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from megatron_octo.data.formats import BadRow, Formatter, columns_of
from megatron_octo.data.pieces import Piece
from megatron_octo.data.tally import Tally
from megatron_octo.errors import DataError


class PieceReader(BaseReader):
    """Reads the piece of its rank."""

    def __init__(self, pieces: Sequence[Piece], formatter: Formatter, tally: Tally) -> None:
        super().__init__()
        self._pieces, self._format, self._tally = pieces, formatter, tally

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        yield from self.read(self._pieces[rank])

    @abstractmethod
    def read(self, piece: Piece) -> Iterator[Document]:
        """The documents of a piece."""


class JsonlPieces(PieceReader):
    """JSON lines: plain, `.gz` or `.zst`. Blank lines are no rows."""

    name = "JSON lines"

    def read(self, piece: Piece) -> Iterator[Document]:
        tally, format, path, line = self._tally, self._format, piece.path, -1
        with closing(_Lines(piece)) as lines:
            for line, raw in enumerate(lines):
                tally.done = lines.read
                if raw.isspace():
                    continue
                tally.rows += 1
                try:
                    text = format(_parse(raw))
                except BadRow as reason:
                    tally.bad_row(str(reason), path, line)
                    continue
                yield Document(text, id="")
        tally.lines[path] = line + 1
        tally.done = piece.weight


class _Lines:
    """Lines that begin in a piece, as bytes, and how far into the piece they reach."""

    def __init__(self, piece: Piece) -> None:
        self._piece, self.read = piece, 0
        self._raw: IO[bytes] = open(piece.path, "rb", buffering=1 << 20)  # noqa: SIM115 (closed by the reader)
        self._is_plain = True
        self._file: IO[bytes] | gzip.GzipFile = self._raw
        if piece.path.endswith(".gz"):
            self._file, self._is_plain = gzip.GzipFile(fileobj=self._raw), False
        elif piece.path.endswith(".zst"):
            import zstandard

            stream = zstandard.ZstdDecompressor().stream_reader(self._raw, read_across_frames=True)
            self._file, self._is_plain = io.BufferedReader(stream, buffer_size=1 << 20), False

    def __iter__(self) -> Iterator[bytes]:
        return self._plain() if self._is_plain else self._compressed()

    def _plain(self) -> Iterator[bytes]:
        size = self._piece.end - self._piece.start
        if self._piece.start:
            # a line is of the piece it begins in: step back one byte, so that a line that begins here is kept
            self._raw.seek(self._piece.start - 1)
            self.read = len(self._raw.readline()) - 1
        while self.read < size and (line := self._raw.readline()):
            self.read += len(line)
            yield line

    def _compressed(self) -> Iterator[bytes]:
        import zlib

        from zstandard import ZstdError

        try:
            for line in self._file:
                self.read = self._raw.tell()
                yield line
        except (OSError, EOFError, zlib.error, ZstdError) as error:
            raise DataError(f"{self._piece.path}: damaged or cut short ({error}); fetch the file again") from None

    def close(self) -> None:
        self._file.close()
        self._raw.close()


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise BadRow("not UTF-8") from None
        raise BadRow("not JSON") from None


class ParquetPieces(PieceReader):
    """Row groups of Parquet, of which only the fields of the format are read."""

    name = "Parquet"

    def read(self, piece: Piece) -> Iterator[Document]:
        import pyarrow
        import pyarrow.parquet

        tally, format, row_number = self._tally, self._format, 0
        with pyarrow.parquet.ParquetFile(piece.path) as file:
            groups = range(piece.start, piece.end)
            total = sum(file.metadata.row_group(group).num_rows for group in groups)
            try:
                for batch in file.iter_batches(
                    1024, row_groups=groups, columns=columns_of(file.schema_arrow.names, format.fields)
                ):
                    for row in batch.to_pylist():
                        tally.rows += 1
                        try:
                            text = format(row)
                        except BadRow as reason:
                            tally.bad_row(str(reason), piece.path, row_number)
                        else:
                            yield Document(text, id="")
                        row_number += 1
                    tally.done = piece.weight * row_number // max(total, 1)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{piece.path}: damaged ({error}); fetch the file again") from None
        tally.lines[piece.path] = row_number
        tally.done = piece.weight


class HubRows(HuggingFaceDatasetReader):
    """Rows of a data set of the hub, streamed."""

    def __init__(self, dataset: str, options: dict[str, Any], formatter: Formatter, tally: Tally) -> None:
        super().__init__(dataset, dataset_options=options, streaming=True)
        self._format, self._tally = formatter, tally

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Document | None:
        tally = self._tally
        tally.rows += 1
        tally.lines[source_file] = tally.rows
        try:
            return Document(self._format(data), id="")
        except BadRow as reason:
            tally.bad_row(str(reason), source_file, tally.rows - 1)
            return None


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
