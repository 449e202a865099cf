"""The base of every recipe section, and the types that several sections use."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megatron_octo.reading.json_text import shortened

MOST_TEXT = 64 << 10
"""Characters of one text in a recipe."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe."""

    key: str
    """Dotted, as a user writes it."""
    value: object
    why: str
    way_out: str

    def under(self, section: str) -> "Problem":
        """The same problem, with its key under the key of a section."""
        return replace(self, key=f"{section}.{self.key}") if section else self

    def __str__(self) -> str:
        return f"{self.key} = {shortened(repr(self.value), 120)}: {self.why}; {self.way_out}"


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are errors; a field is documented by the string beneath it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        str_max_length=MOST_TEXT,
    )

    def problems(self) -> Iterator[Problem]:
        """Problems between the fields of this one section, with keys relative to it.

        The type of a field checks that field alone, and `recipe/check.py` checks across sections.
        """
        return iter(())

    def all_problems(self, key: str = "") -> Iterator[Problem]:
        """The problems of this section and of every section inside it.

        Args:
            key: the section's own key, which the problems' keys begin with.
        """
        yield from (problem.under(key) for problem in self.problems())
        for name in type(self).model_fields:
            yield from _problems_inside(getattr(self, name), f"{key}.{name}" if key else name)


def _problems_inside(value: Any, key: str) -> Iterator[Problem]:
    if isinstance(value, Section):
        yield from value.all_problems(key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _problems_inside(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems_inside(item, f"{key}.{index}")


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]
"""The name of a recipe, a stage or a source, which becomes a folder. It does not begin with a dot."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""NumPy's generators take 32 bits."""
Count = Annotated[int, Field(gt=0, le=100_000_000)]
"""A number of documents, problems or steps."""
