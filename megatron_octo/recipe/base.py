"""The base of every recipe section: frozen, and strict about unknown keys. And types that several sections use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST_TEXT = 64 << 10
"""Characters of one text in a recipe."""


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


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=100)]
"""Recipes, stages and sources become folders: letters, digits, `.`, `_` and `-`, not beginning with a dot."""
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Within 32 bits, which is what NumPy's generators take."""
Count = Annotated[int, Field(gt=0, le=100_000_000)]
"""Documents, problems or steps."""
