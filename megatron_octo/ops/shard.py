"""A vocabulary split over a process group: a rank's shard, and the merge of its softmax statistics with the others'."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_octo.errors import OperatorError

_LOWEST_SHIFT = -1e4
"""exp(-1e4) is 0 in fp32 and in fp64."""


@dataclass(frozen=True)
class VocabShard:
    """Columns `first` to `first + size` of the vocabulary, on this rank of `group`.

    Shards may differ in size. The logits may have more columns than `size`; the rest is padding, which is never read
    and gets a gradient of 0.
    """

    group: dist.ProcessGroup
    first: int
    size: int

    def __post_init__(self) -> None:
        """Refuse negative bounds."""
        if self.first < 0 or self.size < 0:
            raise OperatorError(
                f"VocabShard(first={self.first}, size={self.size}): give 0 or more for both; size 0 is a rank "
                "that holds only padding"
            )


def all_reduce_stats(stats_4T: torch.Tensor, scale_T: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Merge each rank's `plain.token_stats` into those of the whole vocabulary. Every rank of the group must call it.

    Each rank fills its own slot of a buffer of zeros, and one all-reduce sums the buffers: 16 bytes a token and rank.
    All ranks then merge the slots in the same order, so they get the same bits.

    Args:
        stats_4T: (4, tokens) statistics of this rank's shard.
        scale_T: (tokens,) 1 / temperature.

    Returns:
        (4, tokens) statistics of the whole rows.
    """
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    all_R4T = stats_4T.new_zeros((world_size, *stats_4T.shape))
    all_R4T[rank] = stats_4T
    dist.all_reduce(all_R4T, group=group)
    return merge_stats(all_R4T, scale_T)


def merge_stats(parts_R4T: torch.Tensor, scale_T: torch.Tensor) -> torch.Tensor:
    """(4, tokens) statistics of whole rows from those of disjoint parts of the vocabulary.

    Args:
        parts_R4T: (parts, 4, tokens), of ranks or of vocabulary blocks, as `plain.token_stats` returns them.
        scale_T: (tokens,) 1 / temperature.
    """
    maximum_RT, sum_RT, weighted_RT, target_RT = parts_R4T.unbind(1)
    maximum_T = maximum_RT.amax(dim=0)
    shift_RT = (maximum_RT - maximum_T) * scale_T
    is_empty_RT = maximum_RT == -torch.inf  # only padding, or all logits -inf
    factor_RT = shift_RT.exp().masked_fill(is_empty_RT, 0.0)
    # Clamp where exp is 0. A part masked with its dtype's lowest number may have a shift of -inf, and 0 * -inf is NaN.
    shift_RT = shift_RT.masked_fill(is_empty_RT, 0.0).clamp(min=_LOWEST_SHIFT)
    # A NaN sum must stay NaN, even in a part whose maximum is -inf.
    sum_T = torch.where(is_empty_RT & ~sum_RT.isnan(), 0.0, factor_RT * sum_RT).sum(dim=0)
    weighted_T = (factor_RT * (weighted_RT + shift_RT * sum_RT)).sum(dim=0)
    return torch.stack([maximum_T, sum_T, weighted_T, target_RT.amax(dim=0)])
