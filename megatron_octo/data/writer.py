"""The last step of a pipeline: tokens into one task's `.bin`, with what the merge needs beside it."""

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer, MegatronTokenizedFile
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from megatron_octo.data.limits import Limits
from megatron_octo.data.tally import Tally, read_report
from megatron_octo.data.tokenizer import vocabulary_size
from megatron_octo.data.tokenizer_file import read_tokenizer_file

_BATCH_DOCUMENTS = 10_000
_BATCH_CHARACTERS = 4_000_000


class TokenWriter(MegatronDocumentTokenizer):
    """datatrove's `MegatronDocumentTokenizer`, writing by the batch rather than by the document.

    Beside `<rank>_tokens.bin` and `.idx` it leaves `<rank>.lengths.npy` (tokens of each document, int32) and
    `<rank>.hashes.npy` (64 bits of each text, uint64), by which the merge cuts and splits. No token is added but
    the end of document: datatrove replaces the tokenizer's own post-processor, so no beginning-of-text token
    stands between packed documents. Truncation and padding are off. A special token spelled out in a text is encoded
    as plain text, so text cannot end a document.
    """

    def __init__(self, folder: Path, tokenizer: Path, end_of_document: str, tally: Tally, limits: Limits) -> None:
        super().__init__(str(folder), tokenizer_name_or_path=str(tokenizer), eos_token=end_of_document)
        self._folder, self._tally, self._limits = folder, tally, limits

    @cached_property
    def token_size(self) -> int:
        """Bytes of a token, by the highest id; datatrove goes by their number, and ids may have gaps."""
        return 4 if vocabulary_size(self.tokenizer) > np.iinfo(np.uint16).max + 1 else 2

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read once a process, however many tasks it runs."""
        return _tokenizer(self.tokenizer_name_or_path, self.eos_token)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        self._tally.begin(rank)
        if self._limits.any and enough_before(self._folder, rank, self._limits):
            data = iter(())
        super().run(data, rank, world_size)
        self._tally.finish()

    def write_tokens(self, data: DocumentsPipeline, filename: str) -> MegatronTokenizedFile:
        out = MegatronTokenizedFile(self.output_folder, filename, token_size=self.token_size)
        lengths: list[int] = []
        hashes: list[int] = []
        for batch in _batches(data):
            with self.track_time(unit="batch"):
                # no offsets are needed, and skipping them is faster
                encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast([d.text for d in batch])]
                lengths.extend(map(len, encoded))
                tokens = np.fromiter(chain.from_iterable(encoded), dtype=out.token_dtype)
                out.bin_file.write(tokens.tobytes())
                hashes.extend(text_hash(document.text) for document in batch)
                self.stat_update("tokens", value=len(tokens), unit="batch")
            self._tally.documents += len(batch)
            self._tally.tokens += len(tokens)
            self._tally.tick()
            if self._limits.any and self._limits.pool_size(np.array(lengths, dtype=np.int32)) is not None:
                break
        out.sequence_lengths, out.document_indices = lengths, list(range(len(lengths) + 1))
        out.close()
        np.save(self._folder / f"{self._tally.rank:05d}.lengths.npy", np.array(lengths, dtype=np.int32))
        np.save(self._folder / f"{self._tally.rank:05d}.hashes.npy", np.array(hashes, dtype=np.uint64))
        return out


def text_hash(text: str) -> int:
    """64 bits of a text: what decides whether it is kept for validation, and finds its duplicates."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def enough_before(folder: Path, rank: int, limits: Limits) -> bool:
    """Whether the tasks before this one are done and reach the limits, so that none of its text would be kept."""
    lengths: list[npt.NDArray[np.int32]] = []
    for earlier in range(rank):
        if read_report(folder, earlier) is None:
            return False
        lengths.append(np.load(folder / f"{earlier:05d}.lengths.npy"))
    return bool(lengths) and limits.pool_size(np.concatenate(lengths)) is not None


def _batches(data: DocumentsPipeline) -> Iterator[list[Document]]:
    """Batches bounded in documents and in characters, so that long documents do not fill the memory."""
    batch: list[Document] = []
    characters = 0
    for document in data:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _tokenizer(path: str, end_of_document: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = read_tokenizer_file(Path(path), path)
    tokenizer.post_processor = TemplateProcessing(
        single="$A <EOS>", special_tokens=[("<EOS>", tokenizer.token_to_id(end_of_document))]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer
