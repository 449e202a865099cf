"""A source's limits on documents and tokens, which take the same documents for any number of workers."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Limits:
    """A source's `max_documents` and `max_tokens`, counted over its tasks in order.

    The pool is the documents that the two splits are drawn from. A limit on documents is the size of the pool. A limit
    on tokens ends the pool `validation` documents after the document that reaches it, so that both splits get text.
    """

    documents: int | None
    tokens: int | None
    validation: int

    def pool_size(self, lengths: npt.NDArray[np.int32]) -> int | None:
        """Documents in the pool, given the tokens of each document read so far. None: no limit is reached yet."""
        ends = []
        if self.documents is not None and len(lengths) >= self.documents:
            ends.append(self.documents)
        if self.tokens is not None:
            total = np.cumsum(lengths, dtype=np.int64)
            last = int(np.searchsorted(total, self.tokens)) + 1 + self.validation
            if last <= len(lengths):
                ends.append(last)
        return min(ends, default=None)

    @property
    def any(self) -> bool:
        return self.documents is not None or self.tokens is not None
