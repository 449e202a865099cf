"""Workaround for megatron-core 0.16.1, which saves optimizer state from the wrong place where a bucket is padded.

`DistributedOptimizer.get_parameter_state_dp_zero` joins the buckets' contents without the padding at their ends, and
`sharded_param_state_fully_reshardable` then cuts out the parameters by their positions in the padded buffer. With
several buckets, all parameters after the first padding are stored shifted, without an error: same sizes, other numbers.
It happens with any bucket whose size is no multiple of lcm(data-parallel size, 128). Tied embeddings under
pipeline parallelism have a bucket of their own, so a vocabulary of 261 x 64 is enough.
"""

from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def keep_bucket_padding(optimizer: MegatronOptimizer) -> None:
    """Keep the padding in the state that this optimizer gathers, so that parameters lie at their positions."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, DistributedOptimizer):
            part.get_parameter_state_dp_zero = _with_padding(part)


def _with_padding(part: DistributedOptimizer) -> Any:
    gather = part.get_parameter_state_dp_zero

    def gather_with_padding(*args: Any, **kwargs: Any) -> Any:
        state = gather(*args, **kwargs)
        if state is None:  # a rank that only sends
            return state
        for number, buffer in enumerate(part.buffers):
            for tensors in state[number].values():
                for key, joined in tensors.items():
                    if torch.is_tensor(joined):
                        tensors[key] = _spread(joined, buffer)
        return state

    return gather_with_padding


def _spread(joined: torch.Tensor, buffer: Any) -> torch.Tensor:
    """(buffer.numel_unpadded,) to (buffer.numel,): each bucket's content moved to the bucket's own offset."""
    spread = torch.zeros(buffer.numel, dtype=joined.dtype, device=joined.device)
    position = 0
    for bucket in buffer.buckets:
        count = bucket.numel_unpadded
        spread[bucket.offset : bucket.offset + count] = joined[position : position + count]
        position += count
    return spread
