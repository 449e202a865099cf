"""This process's rank, from the environment. Imports nothing heavy, since a rank needs it before it loads torch."""

import os
from dataclasses import dataclass

from megatron_octo.errors import RuntimeSetupError


@dataclass(frozen=True)
class Rank:
    """The position of this process among all ranks."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints, and writes files that all ranks share."""
        return self.rank == 0

    @classmethod
    def from_environment(cls) -> "Rank":
        """Read torchrun's variables, or else SLURM's; without either, this is the only rank.

        Raises:
            RuntimeSetupError: a variable is not a number, or the rank is not below the world size.
        """
        if "RANK" in os.environ:
            found = cls(_number("RANK"), _number("LOCAL_RANK", 0), _number("WORLD_SIZE"))
        elif is_rank_already():
            found = cls(_number("SLURM_PROCID"), _number("SLURM_LOCALID", 0), _number("SLURM_NTASKS"))
        else:
            return cls(0, 0, 1)
        if not max(found.rank, found.local_rank) < found.world_size:
            raise RuntimeSetupError(
                f"rank {found.rank} (local rank {found.local_rank}) of {found.world_size} ranks: ranks count "
                "from 0; start them with torchrun or srun"
            )
        return found


def is_rank_already() -> bool:
    """Whether torchrun or SLURM started this process as one of several ranks."""
    return "RANK" in os.environ or ("SLURM_PROCID" in os.environ and _number("SLURM_NTASKS", 1) > 1)


def read_port(variable: str) -> int:
    """A port from the environment.

    Raises:
        RuntimeSetupError: the variable is not a port.
    """
    port = _number(variable, 0)
    if not 0 < port < 1 << 16:
        raise RuntimeSetupError(
            f"${variable} = {os.environ.get(variable)!r}: not a port; export a free one to all ranks"
        )
    return port


def _number(variable: str, default: int | None = None) -> int:
    text = os.environ.get(variable, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise RuntimeSetupError(f"${variable} = {text!r}: not a number; start ranks with torchrun or srun, or unset it")
    return int(text)
