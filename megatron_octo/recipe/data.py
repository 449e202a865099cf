"""Where text comes from, and how a row of it becomes a document."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from megatron_octo.recipe.base import Count, Name, Problem, Section, Seed
from megatron_octo.recipe.templates import SIMPLE_QUESTION, question_answer_parts
from megatron_octo.recipe.tokens import Tokens

RESERVED_SOURCES = ("tokenizer", "heldout")
"""Folders of a run's `data/` that are not sources."""
MOST_HELDOUT = 50_000
"""A small part of the sums of three two-digit terms, so that most of them stay in training text."""
MOST_PRACTICE = 800
"""There are 1,899 sums of three one-digit terms, and training text needs the larger part of them."""


class TextFormat(Section):
    """A document is one field of the row, unchanged."""

    kind: Literal["text"] = "text"
    text: str = "text"


class QuestionAnswerFormat(Section):
    """A document is a question and its answer in a template."""

    kind: Literal["qa"]
    question: str = "question"
    answer: str = "answer"
    template: str = SIMPLE_QUESTION + "{answer}"

    @field_validator("template")
    @classmethod
    def _has_both_places(cls, template: str) -> str:
        question_answer_parts(template)
        return template


class InstructionFormat(Section):
    r"""A conversation, with `User:...` and `Assistant:...` on separate lines.

    Source of the template: OctoThinker, arXiv 2506.20512 (`User:{}\nAssistant:{}`).
    """

    kind: Literal["instruction"]
    messages: str | None = None
    """A field with a list of {role, content}. None: the two fields below."""
    user: str = "user"
    assistant: str = "assistant"


class LongCotFormat(Section):
    """A question, a newline, the thought inside `<think>`, and the answer after it.

    `thought: null` means that the answer field already has its own `<think>` part, as in OpenR1-Math.
    """

    kind: Literal["long_cot"]
    question: str = "question"
    thought: str | None = "thought"
    answer: str = "answer"


Format = Annotated[TextFormat | QuestionAnswerFormat | InstructionFormat | LongCotFormat, Field(discriminator="kind")]


class _Source(Section):
    """The keys that every kind of source has."""

    licence: str = "unstated"
    description: str = ""
    max_documents: PositiveInt | None = None
    max_tokens: Tokens | None = None
    """Tokenize about this much training text of the source, in whole documents."""
    validation_documents: PositiveInt = 64
    """Documents that are kept out of training and used for this source's validation loss."""
    max_bad_rows: float = Field(default=0.001, ge=0.0, le=1.0)
    """Share of unreadable rows beyond which preparation stops."""
    decontaminate: bool = True

    def most_documents(self) -> int | None:
        """The number of documents that the recipe limits the source to. None: there is no limit."""
        return self.max_documents

    def problems(self) -> Iterator[Problem]:
        """A limit that leaves nothing to train on."""
        limit = self.most_documents()
        if limit is not None and limit <= self.validation_documents:
            why = f"the recipe limits the source to {limit:,} documents, which leaves none to train on"
            yield Problem("validation_documents", self.validation_documents, why, "lower it, or raise the limit")


class JsonlSource(_Source):
    """Local JSON lines, one JSON list, or Parquet, compressed or not. The first bytes of a file decide what it is."""

    kind: Literal["jsonl"]
    paths: list[str] = Field(min_length=1)
    """Files or globs, relative to where `octo` is run. A file of exactly that name takes precedence over the glob."""
    format: Format = TextFormat()


class ParquetSource(_Source):
    """Local Parquet files."""

    kind: Literal["parquet"]
    paths: list[str] = Field(min_length=1)
    format: Format = TextFormat()


class HubSource(_Source):
    """A data set on the Hugging Face hub, streamed."""

    kind: Literal["hub"]
    dataset: str
    subset: str | None = None
    """The data set's configuration name."""
    data_dir: str | None = None
    """A folder inside the repository."""
    split: str = "train"
    revision: str | None = None
    """A commit. None: the newest one, which the manifest records."""
    format: Format = TextFormat()


class BuiltinSource(_Source):
    """A corpus that reasoning-gym generates. The same settings give the same text."""

    kind: Literal["builtin"]
    corpus: Literal["web", "code", "qa", "long_cot", "instruction"]
    documents: Count
    seed: Seed = 0

    def most_documents(self) -> int:
        """The smaller of `documents` and `max_documents`."""
        return min(self.documents, self.max_documents or self.documents)


Source = Annotated[JsonlSource | ParquetSource | HubSource | BuiltinSource, Field(discriminator="kind")]


class EvaluationText(Section):
    """Files of evaluation problems whose text must not be in training data."""

    paths: list[str] = Field(min_length=1)
    """Files in any form that a source may have, but no globs."""
    fields: list[str] = Field(min_length=1)
    """Fields whose text is protected: the question, and the solution too if you like. A dot steps into nested rows."""


class Decontamination(Section):
    """n-gram decontamination: a document that shares an n-gram of words with a protected text is dropped."""

    ngram: PositiveInt = 13
    """Words in a row; 13 as for GPT-3 and in datatrove. A protected text that is shorter is matched whole."""
    against: dict[str, EvaluationText] = Field(default_factory=dict)


class DataSection(Section):
    """The corpora of a recipe, which stages mix by name."""

    sources: dict[Name, Source] = Field(min_length=1, max_length=10_000)
    decontamination: Decontamination = Decontamination()
    heldout_problems: int = Field(default=0, ge=0, le=MOST_HELDOUT)
    """Built-in problems that never enter training text. They are written to data/heldout/problems.jsonl."""
    heldout_seed: Seed = 1_000_003
    practice_problems: int = Field(default=0, ge=0, le=MOST_PRACTICE)
    """Sums and differences of three one-digit terms that are kept out of training text for RL to practise on.
    Otherwise a few million tokens of text contain nearly all of them."""

    def problems(self) -> Iterator[Problem]:
        """Sources whose names are taken by other folders."""
        for name in RESERVED_SOURCES:
            if name in self.sources:
                why = f"cannot be a folder under data/, where a run keeps its {name}"
                yield Problem(f"sources.{name}", name, why, "rename the source")
