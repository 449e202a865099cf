"""The settings that every process of an RL run needs, carried through Ray and vLLM in one environment variable."""

import os

from pydantic import BaseModel, ConfigDict

from megatron_octo.recipe.rl import RlSection
from megatron_octo.runtime.rl_folder import RlFolder

VARIABLE = "OCTO_RL"


class Session(BaseModel):
    """An RL run, as its worker processes know it."""

    model_config = ConfigDict(frozen=True)

    rl: RlSection
    folder: RlFolder

    def to_environment(self) -> dict[str, str]:
        """The environment variable that carries this session, by name."""
        return {VARIABLE: self.model_dump_json()}

    @classmethod
    def from_environment(cls) -> "Session | None":
        """The session of this process; None if the process belongs to no RL run."""
        text = os.environ.get(VARIABLE)
        return cls.model_validate_json(text) if text else None

    @classmethod
    def required(cls) -> "Session":
        """The session of this process.

        Raises:
            RuntimeError: the process belongs to no RL run.
        """
        session = cls.from_environment()
        if session is None:
            raise RuntimeError(f"{VARIABLE} is not set: this code runs only in processes that `octo rl` starts")
        return session
