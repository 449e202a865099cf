"""What every process of an RL run must know: carried through Ray and vLLM as one environment variable."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from megatron_octo.recipe.rl import RlSection

VARIABLE = "OCTO_RL"


class Session(BaseModel):
    """A run's settings, for its workers."""

    model_config = ConfigDict(frozen=True)

    rl: RlSection
    folder: Path
    """`runs/<recipe>/rl/<stage>`."""

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        return self.folder / "validation_scores.jsonl"

    def to_environment(self) -> dict[str, str]:
        """The variable that carries it."""
        return {VARIABLE: self.model_dump_json()}

    @classmethod
    def from_environment(cls) -> "Session | None":
        """The session of this process; None where it belongs to none."""
        text = os.environ.get(VARIABLE)
        return cls.model_validate_json(text) if text else None
