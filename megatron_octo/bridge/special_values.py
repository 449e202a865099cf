"""Counts weights that are NaN or infinite, and weights that rounding makes infinite or zero, during a conversion."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_octo.errors import CheckpointError

_NAMED = 4
"""Most tensors that a message names."""


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. One pass without a copy: the extremes are NaN if any value is NaN."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    return tensor.numel() - int(torch.count_nonzero(tensor.isfinite()))


def name_tensors(counts: dict[str, int]) -> str:
    """The first tensors of a count, with their counts, for a message."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_NAMED])
    return shown + (", ..." if len(counts) > _NAMED else "")


@dataclass
class Rounding:
    """Rounds weights to a narrower dtype, and counts those that overflow to infinity or underflow to zero.

    float16 overflows above 65,504 and has no value between 0 and 6e-8; bfloat16 has the exponent range of float32.
    """

    dtype: torch.dtype | None
    to_inf: dict[str, int] = field(default_factory=dict)
    """Finite weights that became infinite, by tensor."""
    to_zero: dict[str, int] = field(default_factory=dict)
    """Weights other than 0 that became 0, by tensor."""
    worst_share: float = 0.0
    """Share of weights that became 0 in the tensor where that share is largest: the worst tensor."""
    largest_lost: float = 0.0
    """Largest weight of the worst tensor that became 0."""
    root_mean_square: float = 0.0
    """Root mean square of the worst tensor. A lost weight matters only relative to it."""

    @property
    def infinities(self) -> int:
        """Weights that became infinite."""
        return sum(self.to_inf.values())

    @property
    def zeros(self) -> int:
        """Weights that became zero."""
        return sum(self.to_zero.values())

    def rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the requested dtype."""
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def count(self, names: Sequence[str], before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
        """Count the weights that rounding made infinite or zero. Usually one pass over each tensor, without a copy."""
        for name, wide, narrow in zip(names, before, after, strict=True):
            if wide.dtype == narrow.dtype:
                continue
            if not is_finite(narrow) and (count := int((narrow.isinf() & wide.isfinite()).sum())):
                self.to_inf[name] = count
            left = int(torch.count_nonzero(narrow))
            if left < narrow.numel() and (count := int(torch.count_nonzero(wide)) - left):
                self.to_zero[name] = count
                if count / wide.numel() > self.worst_share:  # only for a new worst tensor, since it takes time
                    self.worst_share = count / wide.numel()
                    self.largest_lost = float(wide[narrow == 0].abs().max())
                    self.root_mean_square = (
                        float(torch.linalg.vector_norm(wide, dtype=torch.float32)) / wide.numel() ** 0.5
                    )

    def text(self) -> str:
        """The counts in words; empty if nothing was lost."""
        parts = [f"{self.infinities:,} weights became infinite"] if self.infinities else []
        if self.zeros:
            worst = f"at worst up to {self.largest_lost:.2g}, in a tensor of about {self.root_mean_square:.2g}"
            parts.append(f"{self.zeros:,} other than 0 became 0 ({worst})")
        return " and ".join(parts)

    def check(self, where: str, allow_inf: bool, allow_zero: bool) -> None:
        """Refuse losses that were not allowed.

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
                f"{'; '.join(name_tensors(counts) for _, counts in refused)}; export in bfloat16 or in the stored "
                f"dtype, or give {flags}"
            )
