"""The proof by tensors: a Hugging Face folder and a Megatron checkpoint hold the same bits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_octo.bridge.hf_folder import HfFolder
from megatron_octo.bridge.megatron_folder import MegatronFolder
from megatron_octo.bridge.weight_map import in_order, sizes_of
from megatron_octo.errors import CheckpointError

_SAME_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class TensorReport:
    """The result of comparing all tensors."""

    tensors: int
    """Number of Hugging Face tensors, all of which were compared."""
    bytes: int
    """Size of the Hugging Face tensors."""
    different: tuple[str, ...]
    """Hugging Face names of the tensors that differ in any bit."""
    rounded: int
    """Tensors that Megatron stores in another dtype, compared after rounding to Hugging Face's."""
    to_inf: int = 0
    """For an export: finite weights that rounding made infinite."""
    to_zero: int = 0
    """For an export: weights other than 0 that rounding made 0."""


def verify_tensors(
    hf: HfFolder, megatron: MegatronFolder, on_bytes: Callable[[int], None] | None = None
) -> TensorReport:
    """Compare every tensor, bit for bit, in the direction of an import.

    Each Megatron tensor is made again from Hugging Face's and compared with the stored one, regardless of how either
    was made. Bits are compared, so `-0.0` differs from `0.0`, and a NaN equals the same NaN.

    Args:
        on_bytes: called with the size of every tensor that was compared.

    Raises:
        CheckpointError: the two have different architectures.
    """
    if changed := megatron.architecture.differences(hf.architecture):
        raise CheckpointError(
            f"{megatron.path} and {hf.path} are of different architectures ({'; '.join(changed)}); give a pair of one "
            "model"
        )
    different: list[str] = []
    tensors = rounded = 0
    sizes = sizes_of(hf.architecture)
    for rule, layer in in_order(megatron.rules, megatron.architecture.num_hidden_layers):
        names = rule.names(layer)
        made = rule.join.join([hf.tensor(name) for name in names], hf.architecture)
        stored = megatron.reader.read(rule.key, layer, rule.shape(sizes)[0])
        tensors += len(names)
        if stored.dtype != made.dtype:
            stored = stored.to(made.dtype)
            rounded += len(names)
        if not _same_bits(made, stored):
            pairs = zip(
                rule.join.separate(made, hf.architecture), rule.join.separate(stored, hf.architecture), strict=True
            )
            different += [name for name, pair in zip(names, pairs, strict=True) if not _same_bits(*pair)]
        if on_bytes is not None:
            on_bytes(made.nbytes)
    return TensorReport(tensors, hf.bytes, tuple(different), rounded)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    kind = _SAME_BITS[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
