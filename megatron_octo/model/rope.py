"""RoPE parameters that Megatron-Core can express."""

from megatron_octo.errors import ModelError
from megatron_octo.recipe import Architecture


def check_expressible(architecture: Architecture) -> None:
    """Refuse what Megatron-Core would silently compute differently. A recipe has been checked; a manifest has not.

    Raises:
        ModelError: RoPE parameters that Megatron-Core has as constants.
    """
    scaling = architecture.rope_scaling
    if scaling is not None and (problems := list(scaling.all_problems("model.architecture.rope_scaling"))):
        raise ModelError("; ".join(str(problem) for problem in problems))
