"""A rank's part of a vocabulary that is split over a process group."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_octo.errors import OperatorError

_LOWEST = -1e4
"""exp of it is 0 in fp64, too."""


@dataclass(frozen=True)
class VocabShard:
    """Columns `first` to `first + size` of the vocabulary, on this rank of `group`.

    Shards may be of different sizes, and the logits may have more columns than `size`: those behind it are padding,
    never read, and their gradient is 0.
    """

    group: dist.ProcessGroup
    first: int
    size: int

    def __post_init__(self) -> None:
        """Refuse a shard that cannot be."""
        if self.first < 0 or self.size < 0:
            raise OperatorError(
                f"VocabShard(first={self.first}, size={self.size}): both count from 0; size 0 is a rank of padding"
            )


def join_stats(stats_4T: torch.Tensor, scale_T: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Statistics over the whole vocabulary from each rank's, in one all-reduce. Every rank of the group calls it.

    Each rank puts its own into its slot of a buffer of zeros, and the sum over ranks is everyone's: 16 bytes a token
    and rank, joined in the ranks' order, so that all ranks have the same bits.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    all_R4T = stats_4T.new_zeros((ranks, *stats_4T.shape))
    all_R4T[rank] = stats_4T
    dist.all_reduce(all_R4T, group=group)
    return joined(all_R4T, scale_T)


def joined(parts_R4T: torch.Tensor, scale_T: torch.Tensor) -> torch.Tensor:
    """(4, tokens) statistics of rows from those of their parts, (parts, 4, tokens), whatever the parts are.

    Args:
        scale_T: 1 / temperature.
    """
    maximum_RT, sum_RT, weighted_RT, target_RT = parts_R4T.unbind(1)
    maximum_T = maximum_RT.amax(dim=0)
    shift_RT = (maximum_RT - maximum_T) * scale_T
    has_none_RT = maximum_RT == -torch.inf  # of a shard that is all padding, or all -inf
    factor_RT = shift_RT.exp().masked_fill(has_none_RT, 0.0)
    # held where exp is 0: of a part that is masked by its dtype's lowest number it may be -inf, and 0 x -inf is NaN
    shift_RT = shift_RT.masked_fill(has_none_RT, 0.0).clamp(min=_LOWEST)
    # a sum that is NaN must stay one, also where its maximum said nothing
    sum_T = torch.where(has_none_RT & ~sum_RT.isnan(), 0.0, factor_RT * sum_RT).sum(dim=0)
    weighted_T = (factor_RT * (weighted_RT + shift_RT * sum_RT)).sum(dim=0)
    return torch.stack([maximum_T, sum_T, weighted_T, target_RT.amax(dim=0)])
