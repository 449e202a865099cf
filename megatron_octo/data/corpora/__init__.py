"""The built-in corpora: one role a file, one shared skill, made by reasoning-gym, the same every time.

The skill is sums and differences of 2 to 4 small terms, worked as running partial sums. A quarter of the
documents are other short tasks (equations, products, counting legs, and a few word problems).
"""

from collections.abc import Collection, Iterator
from types import ModuleType

from megatron_octo.data.corpora import code, instruction, long_cot, qa, web
from megatron_octo.data.corpora.problems import CORPUS_VERSION, expressions_in, mixed_problems
from megatron_octo.errors import DataError

CORPORA: dict[str, ModuleType] = {
    "web": web, "code": code, "qa": qa, "long_cot": long_cot, "instruction": instruction
}  # fmt: skip

# Texts are drawn until they differ; a corpus that repeats itself more often than this has run dry.
_DRAWS_A_DOCUMENT = 50

__all__ = ["CORPORA", "CORPUS_VERSION", "expressions_in", "make_corpus"]


def make_corpus(corpus: str, documents: int, seed: int, heldout: Collection[str] = ()) -> Iterator[str]:
    """`documents` different texts of a built-in corpus, a pure function of the arguments.

    A text in which any expression equals a held-out one is never made: the exact expression, at full length. One
    that begins a longer expression is not the same problem, and stays (`12+7-5` held out leaves `12+7-5+3`).

    Raises:
        DataError: the corpus cannot make so many different texts.
    """
    role = CORPORA[corpus]
    excluded = frozenset(heldout)
    seen: set[str] = set()
    stream = mixed_problems(f"{corpus}/{seed}", role.WORD_PROBLEMS)
    for draws, (problem, dice) in enumerate(stream):
        if len(seen) == documents:
            return
        if draws > _DRAWS_A_DOCUMENT * (documents + 1000):
            raise DataError(
                f"the built-in corpus {corpus!r} has about {len(seen)} different documents, not {documents}; "
                "lower data.sources.*.documents"
            )
        text = role.render(problem, dice)
        if text in seen or not excluded.isdisjoint(expressions_in(text)):
            continue
        seen.add(text)
        yield text
