"""A checkpoint's weights into model chunks of any layout: the start of a stage from a base model."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt import GPTModel

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoint_loading import loading
from megatron_octo.runtime.checkpoint_objects import check_extra_states


def load_weights(folder: Path, chunks: Sequence[GPTModel]) -> None:
    """Fill this rank's model chunks. All ranks call it.

    A weight takes the dtype of the model. Rows that pad the vocabulary become zero.

    Raises:
        CheckpointError: tensors that are missing, by name, or of another shape; or one that is damaged, or holds a
            pickle that is not read (`runtime/checkpoint_loading.py`).
    """
    # the kind of optimizer sharding is asked for even where there is no optimizer
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    state: dict[str, Any] = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    with warnings.catch_warnings(), loading(folder):
        warnings.simplefilter("ignore")
        # what the checkpoint has and nobody asks for (Megatron calls it missing) is the optimizer's
        loaded, _, absent = dist_checkpointing.load(
            state, str(folder), common_strategy=_NoCommon(), strict=StrictHandling.RETURN_ALL
        )
    # Transformer Engine keeps FP8 scales under _extra_state, which a base model has none of
    if wrong := sorted(key for key in absent if "_extra_state" not in key):
        raise CheckpointError(f"{folder}: lacks {len(wrong)} tensors of this model ({', '.join(wrong[:4])}, ...)")
    for i, chunk in enumerate(chunks):
        chunk.load_state_dict(check_extra_states(loaded[f"model{i}"], str(folder)), strict=False)


class _NoCommon(TorchCommonLoadStrategy):
    """Nothing of `common.pt`: it is the optimizer's, and in Megatron-LM's own checkpoints its options."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return {}
