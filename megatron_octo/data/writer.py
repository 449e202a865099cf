"""The last step of a pipeline: writes one task's tokens to a `.bin`, and the files that the merge needs."""

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
    """datatrove's `MegatronDocumentTokenizer`, writing by batch instead of by document.

    In addition to `<rank>_tokens.bin` and `.idx` it writes `<rank>.lengths.npy` (tokens of each document, int32) and
    `<rank>.hashes.npy` (64 bits of each text, uint64), which the merge needs to apply limits and split. The only token
    added is the end of document: datatrove replaces the tokenizer's post-processor, so there is no beginning-of-text
    token between packed documents. Truncation and padding are disabled. A special token spelled out in a text is
    encoded as plain text, so that no text can end a document.
    """

    def __init__(self, folder: Path, tokenizer: Path, end_of_document: str, tally: Tally, limits: Limits) -> None:
        super().__init__(str(folder), tokenizer_name_or_path=str(tokenizer), eos_token=end_of_document)
        self._folder, self._tally, self._limits = folder, tally, limits

    @cached_property
    def token_size(self) -> int:
        """Bytes per token, from the highest id. datatrove uses the number of tokens, but ids can have gaps."""
        return 4 if vocabulary_size(self.tokenizer) > np.iinfo(np.uint16).max + 1 else 2

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which is read once for all tasks of a process."""
        return _tokenizer(self.tokenizer_name_or_path, self.eos_token)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        self._tally.begin(rank)
        if self._limits.any and earlier_tasks_reach_limits(self._folder, rank, self._limits):
            data = iter(())
        super().run(data, rank, world_size)
        self._tally.finish()

    def write_tokens(self, data: DocumentsPipeline, filename: str) -> MegatronTokenizedFile:
        out = MegatronTokenizedFile(self.output_folder, filename, token_size=self.token_size)
        lengths: list[int] = []
        hashes: list[int] = []
        for batch in _batches(data):
            with self.track_time(unit="batch"):
                # the fast variant leaves out offsets, which are not needed
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
    """64 bits of a text, which decide whether it is a validation document, and find its duplicates."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def earlier_tasks_reach_limits(folder: Path, rank: int, limits: Limits) -> bool:
    """Whether the earlier tasks are finished and reach the limits, so that no text of this task would be kept."""
    lengths: list[npt.NDArray[np.int32]] = []
    for earlier in range(rank):
        if read_report(folder, earlier) is None:
            return False
        lengths.append(np.load(folder / f"{earlier:05d}.lengths.npy"))
    return bool(lengths) and limits.pool_size(np.concatenate(lengths)) is not None


def _batches(data: DocumentsPipeline) -> Iterator[list[Document]]:
    """Batches that are limited in documents and in characters, so that long documents do not fill the memory."""
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
