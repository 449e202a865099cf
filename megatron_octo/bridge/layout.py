"""The part of each tensor that a rank of a layout holds."""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_octo.bridge.weight_map import Rule, Sizes
from megatron_octo.errors import ModelError
from megatron_octo.recipe import Architecture, Parallel
from megatron_octo.recipe.check import layout_problems


@dataclass(frozen=True)
class Cut:
    """One contiguous part of a rule's tensor in one layer, along the dimension that tensor parallelism splits."""

    start: int
    length: int


def pipeline_rank_of(rule: Rule, layer: int | None, layers: int, layout: Parallel) -> int:
    """The pipeline rank that stores a tensor.

    Layers are split into pipeline x virtual stages equal runs; virtual stage v of rank p is run v * pipeline + p. The
    embedding is on the first rank, the final norm and the output weight are on the last.
    """
    if layer is not None:
        run = layer // (layers // (layout.pipeline * (layout.virtual_pipeline or 1)))
        return run % layout.pipeline
    return 0 if rule.key.startswith("embedding.") else layout.pipeline - 1


def cuts(rule: Rule, sizes: Sizes, tensor_rank: int, tensor: int) -> Iterator[Cut]:
    """The parts of a rule's tensor on one tensor rank; none if another rank stores the only copy.

    Each band (the gate's rows, the up projection's rows) is split separately. If the rows do not divide evenly, every
    rank but the last takes the rounded-up number, and Megatron pads the last rank's part when it loads.
    """
    if rule.split is None:
        if tensor_rank == 0:
            yield Cut(0, rule.shape(sizes)[0])
        return
    band = rule.shape(sizes)[rule.split] // rule.join.bands
    run = -(-band // tensor)
    start, end = min(band, tensor_rank * run), min(band, (tensor_rank + 1) * run)
    for number in range(rule.join.bands):
        if end > start:
            yield Cut(number * band + start, end - start)


def check_layout(architecture: Architecture, layout: Parallel) -> None:
    """Refuse a layout that Megatron-Core cannot build.

    Raises:
        ModelError: with the numbers that do not divide.
    """
    if problems := list(layout_problems(architecture, "parallel", layout)):
        raise ModelError("; ".join(str(problem) for problem in problems))
