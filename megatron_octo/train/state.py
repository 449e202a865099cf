"""Model and optimizer to and from Megatron's distributed checkpoints."""

import warnings
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoint_loading import fill_chunk, load_sharded_state
from megatron_octo.train.optimizer import allocate_moments, load_optimizer

# Under the default type megatron-core 0.16.1 ends in "flattened_range is not supported"
_SHARDING = {"full": "fully_reshardable", "data_parallel": "dp_reshardable"}


def sharded_state(
    model: list[DistributedDataParallel], optimizer: MegatronOptimizer, resharding: str, *, is_loading: bool
) -> dict[str, Any]:
    """The contents of a checkpoint, as Megatron's sharded tensors."""
    metadata = {"distrib_optim_sharding_type": _SHARDING[resharding]}
    state: dict[str, Any] = {}
    for number, chunk in enumerate(model):
        state["model" if len(model) == 1 else f"model{number}"] = chunk.module.sharded_state_dict(metadata=metadata)
    state["optimizer"] = optimizer.sharded_state_dict(dict(state), is_loading=is_loading, metadata=metadata)
    return state


def save_state(
    folder: Path,
    model: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    resharding: str,
    *,
    asynchronous: bool,
) -> AsyncRequest | None:
    """Write model and optimizer into an existing folder. Every rank calls it."""
    state = sharded_state(model, optimizer, resharding, is_loading=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dist_checkpointing.save(
            state,
            str(folder),
            async_sharded_save=asynchronous,
            content_metadata={"distrib_optim_sharding_type": _SHARDING[resharding]},
        )


def load_state(
    folder: Path, model: list[DistributedDataParallel], optimizer: MegatronOptimizer, resharding: str
) -> None:
    """Read model and optimizer from a checkpoint of any layout that its resharding allows. Every rank calls it.

    Raises:
        CheckpointError: tensors that are missing or surplus, by name, or of another shape; or one that is damaged, or
            holds a pickle that is not read (`runtime/checkpoint_loading.py`).
    """
    allocate_moments(optimizer)
    state = sharded_state(model, optimizer, resharding, is_loading=True)
    loaded = load_sharded_state(folder, state, with_common=True)
    if not isinstance(loaded.state.get("optimizer"), dict):
        raise CheckpointError(f"{folder}: common.pt has no optimizer state; restore it from a copy")
    if wrong := sorted({*loaded.absent, *loaded.surplus}):
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors missing or surplus for this model ({', '.join(wrong[:4])}, ...); "
            "it is a checkpoint of another architecture"
        )
    for number, chunk in enumerate(model):
        fill_chunk(chunk.module, loaded.state["model" if len(model) == 1 else f"model{number}"], folder)
    load_optimizer(optimizer, loaded.state["optimizer"])
