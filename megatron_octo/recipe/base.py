"""The base of every recipe section: frozen, and strict about unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of a recipe. Unknown keys are errors; a field is documented by the string beneath it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
