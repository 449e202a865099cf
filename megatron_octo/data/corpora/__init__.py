"""The built-in corpora: five roles of one shared skill, made by reasoning-gym, the same every time.

The skill is sums and differences of 2 to 4 small terms, worked as running partial sums. A quarter of the
documents are other short tasks (equations, products, counting legs, and a few word problems).
"""

from collections.abc import Collection, Iterator

from megatron_octo.data.corpora.problems import CORPUS_VERSION, expressions_in, mixed_problems
from megatron_octo.data.corpora.roles import CORPORA
from megatron_octo.errors import DataError

# Texts are drawn until they differ; a corpus that repeats itself more often than this is exhausted.
_DRAWS_A_DOCUMENT = 50

__all__ = ["CORPORA", "CORPUS_VERSION", "expressions_in", "make_corpus"]


def make_corpus(corpus: str, documents: int, seed: int, heldout: Collection[str] = ()) -> Iterator[str]:
    """`documents` different texts of a built-in corpus, a pure function of the arguments.

    No text contains a held-out expression, that is, exactly that expression at full length. A longer expression that
    begins with it is another problem and stays (with `12+7-5` held out, `12+7-5+3` is kept).

    Raises:
        DataError: the corpus cannot make so many different texts.
    """
    role = CORPORA[corpus]
    excluded = frozenset(heldout)
    seen: set[str] = set()
    stream = mixed_problems(f"{corpus}/{seed}", role.word_problems)
    for draws, (problem, dice) in enumerate(stream):
        if len(seen) == documents:
            return
        if draws > _DRAWS_A_DOCUMENT * (documents + 1000):
            raise DataError(
                f"the built-in corpus {corpus!r} has about {len(seen)} different documents, not {documents}; "
                "lower data.sources.*.documents"
            )
        text = role.write(problem, dice)
        if text in seen or not excluded.isdisjoint(expressions_in(text)):
            continue
        seen.add(text)
        yield text
