"""RoPE parameters that Megatron-Core can express."""

from megatron_octo.errors import ModelError
from megatron_octo.recipe import Architecture


def check_expressible(shape: Architecture) -> None:
    """Refuse what Megatron-Core would compute differently without saying so.

    Raises:
        ModelError: RoPE parameters that Megatron-Core has as constants.
    """
    scaling = shape.rope_scaling
    if scaling is None:
        return
    # RotaryEmbedding._apply_scaling of megatron-core 0.16.1 has these as defaults that GPTModel does not pass on
    fixed = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for field, expected in fixed.items():
        if (value := getattr(scaling, field)) != expected:
            raise ModelError(
                f"model.architecture.rope_scaling.{field} = {value}: Megatron-Core computes with {expected} only; "
                "a model with another value cannot be trained here"
            )
