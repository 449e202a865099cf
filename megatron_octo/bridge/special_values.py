"""Weights that are no numbers, and weights that rounding makes infinite or zero: counted on the way, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_octo.errors import CheckpointError

_NAMED = 4
"""Tensors that a message names."""


def has_only_numbers(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass without a copy: the extremes are NaN if any value is."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    return tensor.numel() - int(torch.count_nonzero(tensor.isfinite()))


def named(counts: dict[str, int]) -> str:
    """The first tensors of a count, for a message."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_NAMED])
    return shown + (", ..." if len(counts) > _NAMED else "")


@dataclass
class Rounding:
    """What rounding to a narrower dtype cost: finite weights that became infinite, and others than zero that became it.

    float16 ends at 65,504 and knows nothing between 0 and 6e-8, where bfloat16 has the exponents of float32.
    """

    dtype: torch.dtype | None
    to_inf: dict[str, int] = field(default_factory=dict)
    """By tensor."""
    to_zero: dict[str, int] = field(default_factory=dict)
    worst_share: float = 0.0
    """Of the tensor that lost most of its weights to zero."""
    largest_lost: float = 0.0
    """In that tensor."""
    beside: float = 0.0
    """Root mean square of that tensor: what matters of a loss is its size beside the rest."""

    @property
    def infinities(self) -> int:
        """Weights that became infinite."""
        return sum(self.to_inf.values())

    @property
    def zeros(self) -> int:
        """Weights that became zero."""
        return sum(self.to_zero.values())

    def rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the dtype asked for."""
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def look(self, names: Sequence[str], before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
        """Count what became of some tensors. Most cost one pass over each, and no memory."""
        for name, wide, narrow in zip(names, before, after, strict=True):
            if wide.dtype == narrow.dtype:
                continue
            if not has_only_numbers(narrow) and (count := int((narrow.isinf() & wide.isfinite()).sum())):
                self.to_inf[name] = count
            left = int(torch.count_nonzero(narrow))
            if left < narrow.numel() and (count := int(torch.count_nonzero(wide)) - left):
                self.to_zero[name] = count
                if count / wide.numel() > self.worst_share:  # looked at a few times a model, since it takes time
                    self.worst_share = count / wide.numel()
                    self.largest_lost = float(wide[narrow == 0].abs().max())
                    self.beside = float(torch.linalg.vector_norm(wide, dtype=torch.float32)) / wide.numel() ** 0.5

    def text(self) -> str:
        """The count in words; empty where there is nothing to count."""
        parts = [f"{self.infinities:,} weights became infinite"] if self.infinities else []
        if self.zeros:
            beside = f"at worst up to {self.largest_lost:.2g}, in a tensor of about {self.beside:.2g}"
            parts.append(f"{self.zeros:,} other than 0 became 0 ({beside})")
        return " and ".join(parts)

    def check(self, where: str, allow_inf: bool, allow_zero: bool) -> None:
        """Refuse what was not allowed.

        Raises:
            CheckpointError: with the counts, the first tensors, and the flags that allow it.
        """
        refused = []
        if self.to_inf and not allow_inf:
            refused.append(("--allow-rounding-to-inf", self.to_inf))
        if self.to_zero and not allow_zero:
            refused.append(("--allow-rounding-to-zero", self.to_zero))
        if refused:
            flags = " and ".join(flag for flag, _ in refused)
            raise CheckpointError(
                f"{where}: not written: in {str(self.dtype).removeprefix('torch.')}, {self.text()}; first in "
                f"{'; '.join(named(counts) for _, counts in refused)}; export in bfloat16, or as they are stored, or "
                f"give {flags}"
            )
