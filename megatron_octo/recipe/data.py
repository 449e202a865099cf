"""Where text comes from and how a row of it becomes a document."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_octo.recipe.base import Count, Name, Section, Seed
from megatron_octo.recipe.tokens import Tokens


class TextFormat(Section):
    """A document is one field of the row, as it stands."""

    kind: Literal["text"] = "text"
    text: str = "text"


class QuestionAnswerFormat(Section):
    """A document is a question and its answer in a template."""

    kind: Literal["qa"]
    question: str = "question"
    answer: str = "answer"
    template: str = "Question:{question}\nAnswer:{answer}"


class InstructionFormat(Section):
    r"""A conversation, written `User:...` and `Assistant:...` on lines of their own.

    Source of the template: OctoThinker, arXiv 2506.20512 (`User:{}\nAssistant:{}`).
    """

    kind: Literal["instruction"]
    messages: str | None = None
    """Field with a list of {role, content}; None: the two fields below."""
    user: str = "user"
    assistant: str = "assistant"


class LongCotFormat(Section):
    """A question, a newline, then the thought inside `<think>` and the answer after it.

    `thought: null` says that the answer field already holds its own `<think>` part (OpenR1-Math does).
    """

    kind: Literal["long_cot"]
    question: str = "question"
    thought: str | None = "thought"
    answer: str = "answer"


Format = Annotated[TextFormat | QuestionAnswerFormat | InstructionFormat | LongCotFormat, Field(discriminator="kind")]


class _Source(Section):
    """What every source says of itself."""

    licence: str = "unstated"
    description: str = ""
    max_documents: PositiveInt | None = None
    max_tokens: Tokens | None = None
    """Stop tokenizing training text of this source at about so many tokens (whole documents)."""
    validation_documents: PositiveInt = 64
    """Documents kept out of training and used for this source's validation loss."""
    max_bad_rows: float = Field(default=0.001, ge=0.0, le=1.0)
    """Share of unreadable rows beyond which preparation stops."""
    decontaminate: bool = True


class JsonlSource(_Source):
    """Local JSON lines, one JSON list, or Parquet; compressed too. A file's first bytes say what it is."""

    kind: Literal["jsonl"]
    paths: list[str] = Field(min_length=1)
    """Files or globs, relative to where `octo` is run. A file of exactly that name wins over the glob."""
    format: Format = TextFormat()


class ParquetSource(_Source):
    """Local Parquet files."""

    kind: Literal["parquet"]
    paths: list[str] = Field(min_length=1)
    format: Format = TextFormat()


class HubSource(_Source):
    """A data set of the Hugging Face hub, streamed."""

    kind: Literal["hub"]
    dataset: str
    subset: str | None = None
    """The data set's configuration name."""
    data_dir: str | None = None
    """A folder inside the repository."""
    split: str = "train"
    revision: str | None = None
    """A commit. None: the newest, and the manifest records which it was."""
    format: Format = TextFormat()


class BuiltinSource(_Source):
    """A corpus made by reasoning-gym on the spot; deterministic."""

    kind: Literal["builtin"]
    corpus: Literal["web", "code", "qa", "long_cot", "instruction"]
    documents: Count
    seed: Seed = 0


Source = Annotated[JsonlSource | ParquetSource | HubSource | BuiltinSource, Field(discriminator="kind")]


class EvaluationText(Section):
    """A file of evaluation problems whose text must not be in training data."""

    paths: list[str] = Field(min_length=1)
    """Files such as those of a source; no globs."""
    fields: list[str] = Field(min_length=1)
    """Fields whose text is protected (the question; the solution too, if you like). A dot steps into what is nested."""


class Decontamination(Section):
    """n-gram decontamination: a document that shares one n-gram of words with a protected text is dropped."""

    ngram: PositiveInt = 13
    """Words in a row. 13 is GPT-3's and datatrove's own default. Protected texts that are shorter
    than this are matched whole."""
    against: dict[str, EvaluationText] = Field(default_factory=dict)


class DataSection(Section):
    """The corpora of a recipe; stages mix them by name."""

    sources: dict[Name, Source] = Field(min_length=1, max_length=10_000)
    decontamination: Decontamination = Decontamination()
    heldout_problems: NonNegativeInt = 0
    """Built-in problems that never enter training text, written to data/heldout/problems.jsonl."""
    heldout_seed: Seed = 1_000_003
    practice_problems: NonNegativeInt = 0
    """Sums and differences of three one-digit terms that are kept out of training text too, so that RL has problems
    which no text holds: without this the text of a few million tokens holds nearly all of them."""
