"""An index of runs of words in evaluation problems, and the search for them in text, by 64-bit hashes.

Both sides are normalised: Unicode NFKC, lower case. Words are the longest runs of letters, digits and underscores;
everything else (punctuation, signs, white space) only separates them. `Janet's $18.` is `janet`, `s`, `18`, with any
spacing.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST_WORDS = 5
"""Evaluation texts with fewer words are skipped: `What is 2 + 2?` as one run would drop half the web."""
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_VOCABULARY_LIMIT = 2_000_000

Hashes = npt.NDArray[np.uint64]


def words_of(text: str) -> list[str]:
    """The normalised words of a text."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.lower())


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= _VOCABULARY_LIMIT:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        self[word] = value
        return value


_BOUNDARY = int.from_bytes(hashlib.blake2b(b"\x00 a boundary between documents", digest_size=8).digest(), "big")


@dataclass(frozen=True)
class NGramIndex:
    """Hashes of runs of words by length, each with its evaluation set."""

    names: tuple[str, ...]
    """Evaluation sets, in the recipe's order."""
    runs: dict[int, tuple[Hashes, npt.NDArray[np.int32]]]
    """Number of words in a run to (sorted hashes, index into `names`). A run in two sets belongs to the first."""
    skipped: dict[str, int]
    """Number of texts with fewer than FEWEST_WORDS words, by set."""

    @classmethod
    def build(cls, protected: dict[str, Sequence[str]], n: int) -> "NGramIndex":
        """Index every run of `n` words of each text. A shorter text is one run.

        Args:
            protected: the texts of each evaluation set.
        """
        found: dict[int, dict[int, int]] = {}
        skipped: dict[str, int] = {}
        vocabulary = _WordHashes()
        for which, (name, texts) in enumerate(protected.items()):
            skipped[name] = 0
            for text in texts:
                hashes = [vocabulary[word] for word in words_of(text)]
                if len(hashes) < min(FEWEST_WORDS, n):
                    skipped[name] += 1
                    continue
                length = min(n, len(hashes))
                into = found.setdefault(length, {})
                for value in _run_hashes(np.array(hashes, dtype=np.uint64), length).tolist():
                    into.setdefault(value, which)
        runs = {}
        for length, entries in sorted(found.items()):
            hashes_, sets = np.array(list(entries), dtype=np.uint64), np.array(list(entries.values()), dtype=np.int32)
            order = np.argsort(hashes_)
            runs[length] = (hashes_[order], sets[order])
        return cls(tuple(protected), runs, skipped)


class NGramSearch:
    """Finds documents that share a run of words with an index."""

    def __init__(self, index: NGramIndex) -> None:
        self._index, self._vocabulary = index, _WordHashes()

    def first_match(self, texts: Sequence[str]) -> list[int | None]:
        """For each text, the first evaluation set (index into `names`) that it shares a run with, or None."""
        # one array of words for the whole batch, so that the only work per document is splitting it into words
        words: list[int] = []
        starts = []
        for text in texts:
            starts.append(len(words))
            words.extend(map(self._vocabulary.__getitem__, words_of(text)))
            words.append(_BOUNDARY)
        matches: list[int | None] = [None] * len(texts)
        array = np.array(words, dtype=np.uint64)
        for length, (hashes, sets) in self._index.runs.items():
            if len(array) < length:
                continue
            runs = _run_hashes(array, length)
            at = np.searchsorted(hashes, runs)
            hits = np.flatnonzero(hashes[np.minimum(at, len(hashes) - 1)] == runs)
            for position, which in zip(hits.tolist(), sets[at[hits]].tolist(), strict=True):
                document = int(np.searchsorted(starts, position, side="right")) - 1
                before = matches[document]
                matches[document] = which if before is None else min(before, which)
        return matches


def _run_hashes(words: Hashes, length: int) -> Hashes:
    """Hash of every run of `length` words, wrapping at 64 bits. Shape (len(words) - length + 1,)."""
    runs = len(words) - length + 1
    total = np.zeros(runs, dtype=np.uint64)
    for offset in range(length):
        total *= _MULTIPLIER
        total += words[offset : offset + runs]
    return total
