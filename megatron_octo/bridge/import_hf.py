"""Hugging Face weights to a Megatron distributed checkpoint, tensor by tensor."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megatron_octo.bridge.companions import FOLDER, check_companions, copy_base
from megatron_octo.bridge.hf_folder import HfFolder, open_hf_folder
from megatron_octo.bridge.layout import Cut, check_layout, cuts, pipeline_rank_of
from megatron_octo.bridge.special_values import count_nonfinite, has_only_numbers, named
from megatron_octo.bridge.tokenizer_check import check_tokenizer
from megatron_octo.bridge.torch_dist import Chunk, write_torch_dist
from megatron_octo.bridge.weight_map import Rule, sizes_of
from megatron_octo.errors import ModelError
from megatron_octo.recipe import BASE, Parallel
from megatron_octo.runtime.atomic_folder import check_target, publish_folder, temporary_folder_for
from megatron_octo.runtime.checkpoints import CheckpointManifest, write_checkpoint_manifest
from megatron_octo.runtime.files import sync_tree
from megatron_octo.runtime.recorded_files import record_files

OnBytes = Callable[[int], None]


def import_checkpoint(
    source: Path,
    target: Path,
    layout: Parallel,
    *,
    recipe: str = "",
    origin: dict[str, Any] | None = None,
    allow_nan: bool = False,
    on_bytes: OnBytes | None = None,
) -> CheckpointManifest:
    """Write a Hugging Face model as a checkpoint in the form that `layout` would save it in.

    Any layout can load it; one that equals `layout` reads from each file only what it needs. Weights keep the dtype
    they have. Peak memory is a few times the largest tensor. The folder appears under its name when it is whole.

    Args:
        source: a folder with `config.json` and safetensors.
        target: a new folder.
        origin: what to note of where the weights are from (name, revision).
        allow_nan: take weights that are NaN or infinite; how many there are is noted in `origin`.
        on_bytes: hears of the bytes written, and of the same bytes again as they are hashed.

    Raises:
        ModelError: a model that cannot be expressed, or whose tensors are not those it should have; weights that are
            NaN or infinite; a tokenizer with more tokens than the embedding has rows.
        RuntimeSetupError: the target holds something, another process makes it, or the disk is too small.
    """
    folder = open_hf_folder(source)
    check_layout(folder.shape, layout)
    check_companions(source)
    check_tokenizer(source, folder.shape.vocab_size)
    check_target(target, folder.bytes)
    seen = _Seen(folder)
    with temporary_folder_for(target) as work:
        output = work / "output"
        output.mkdir()
        ranks = [
            [seen.watched(chunk) for chunk in chunks_of(folder, layout, t, p)]
            for p in range(layout.pipeline)
            for t in range(layout.tensor)
        ]
        write_torch_dist(output, ranks, on_bytes)
        nonfinite = seen.nonfinite()
        if nonfinite and not allow_nan:
            raise ModelError(
                f"{source}: {sum(nonfinite.values()):,} weights are NaN or infinite, in {named(nonfinite)}; copy the "
                "model again, or give --allow-nan to import them as they are"
            )
        copy_base(source, output / FOLDER)
        sync_tree(output)
        manifest = CheckpointManifest(
            recipe=recipe,
            stage=BASE,
            step=0,
            stage_tokens=0,
            lineage_tokens=0,
            learning_rate=0.0,
            layout=layout.model_dump(mode="json"),
            resharding="full",
            architecture=folder.shape.model_dump(mode="json"),
            data_fingerprint={},
            origin={
                "folder": source.name,
                "dtype": str(folder.dtype).removeprefix("torch."),
                **({"weights_not_finite": sum(nonfinite.values())} if nonfinite else {}),
                **(origin or {}),
            },
            versions={package: metadata.version(package) for package in ("torch", "megatron-core", "megatron-octo")},
            files=record_files(output, on_bytes),
        )
        manifest = write_checkpoint_manifest(output, manifest)
        publish_folder(output, target, replace=False)
    return manifest


class _Seen:
    """Looks at every chunk as it passes, and remembers those that hold more than numbers."""

    def __init__(self, folder: HfFolder) -> None:
        self.folder = folder
        self.suspects: set[tuple[str, int]] = set()
        """Megatron's key, and the layer where there is one."""

    def watched(self, chunk: Chunk) -> Chunk:
        """The same chunk, looked at when it is read."""

        def read() -> torch.Tensor:
            tensor = chunk.read()
            if not has_only_numbers(tensor):
                self.suspects.add((chunk.key, chunk.offsets[0]))
            return tensor

        return replace(chunk, read=read)

    def nonfinite(self) -> dict[str, int]:
        """How many values of which Hugging Face tensors are NaN or infinite."""
        rules = {rule.key: rule for rule in self.folder.family.rules_of(self.folder.shape)}
        names = {
            name for key, layer in self.suspects for name in rules[key].names(layer if rules[key].in_layers else None)
        }
        counts = {name: count_nonfinite(self.folder.tensor(name)) for name in sorted(names)}
        return {name: count for name, count in counts.items() if count}


def chunks_of(folder: HfFolder, layout: Parallel, tensor_rank: int, pipeline_rank: int) -> Iterator[Chunk]:
    """The chunks that one rank of a layout stores."""
    layers, sizes = folder.shape.num_hidden_layers, sizes_of(folder.shape)
    for rule in folder.family.rules_of(folder.shape):
        for layer in range(layers) if rule.in_layers else [None]:
            if pipeline_rank_of(rule, layer, layers, layout) != pipeline_rank:
                continue
            for cut in cuts(rule, sizes, tensor_rank, layout.tensor):
                yield _chunk(folder, rule, layer, cut)


def _chunk(folder: HfFolder, rule: Rule, layer: int | None, cut: Cut) -> Chunk:
    shape, dim = list(rule.shape(sizes_of(folder.shape))), rule.split or 0
    extent, offsets = list(shape), [0] * len(shape)
    extent[dim], offsets[dim] = cut.length, cut.start
    if layer is not None:
        shape, extent, offsets = [folder.shape.num_hidden_layers, *shape], [1, *extent], [layer, *offsets]
    return Chunk(
        key=rule.key,
        size=tuple(shape),
        offsets=tuple(offsets),
        extent=tuple(extent),
        dtype=folder.tensors[rule.names(layer)[0]].dtype,
        read=partial(read_cut, folder, rule, layer, cut),
    )


def read_cut(folder: HfFolder, rule: Rule, layer: int | None, cut: Cut) -> torch.Tensor:
    """One part of Megatron's tensor, made from Hugging Face's; views and mapped files where nothing is joined."""
    names, start, dim = rule.names(layer), cut.start, rule.split or 0
    if rule.join.bands == len(names):  # a band is one tensor, and the others need not be read
        band, start = divmod(cut.start, rule.shape(sizes_of(folder.shape))[dim] // rule.join.bands)
        whole = folder.tensor(names[band])
    else:
        whole = rule.join.join([folder.tensor(name) for name in names], folder.shape)
    return whole.narrow(dim, start, cut.length)
