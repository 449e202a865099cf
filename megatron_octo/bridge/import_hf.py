"""Import: Hugging Face weights to a Megatron distributed checkpoint, tensor by tensor."""

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
from megatron_octo.bridge.special_values import count_nonfinite, is_finite, name_tensors
from megatron_octo.bridge.tokenizer_check import check_tokenizer
from megatron_octo.bridge.torch_dist_writer import Chunk, write_torch_dist
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
    """Write a Hugging Face model as the checkpoint that `layout` would save.

    Any layout can load it. A rank of the same layout reads only its own file. Weights keep their dtype. Peak memory is
    a few times the largest tensor. The folder gets its final name once it is complete.

    Args:
        source: a folder with `config.json` and safetensors.
        target: a new folder.
        origin: where the weights come from (name, revision), for the manifest.
        allow_nan: accept weights that are NaN or infinite; their number is recorded in `origin`.
        on_bytes: called with the bytes written, and again with the same bytes as they are hashed.

    Raises:
        ModelError: a model that Megatron-Core cannot compute, or whose tensors are not those of its configuration;
            weights that are NaN or infinite; a tokenizer with more tokens than the embedding has rows.
        RuntimeSetupError: the target holds something, another process is making it, or the disk is too small.
    """
    folder = open_hf_folder(source)
    check_layout(folder.architecture, layout)
    check_companions(source)
    check_tokenizer(source, folder.architecture.vocab_size)
    check_target(target, folder.bytes)
    screen = _NonfiniteScreen(folder)
    with temporary_folder_for(target) as work:
        output = work / "output"
        output.mkdir()
        ranks = [
            [screen.watch(chunk) for chunk in rank_chunks(folder, layout, t, p)]
            for p in range(layout.pipeline)
            for t in range(layout.tensor)
        ]
        write_torch_dist(output, ranks, on_bytes)
        nonfinite = screen.nonfinite()
        if nonfinite and not allow_nan:
            raise ModelError(
                f"{source}: {sum(nonfinite.values()):,} weights are NaN or infinite, in {name_tensors(nonfinite)}; "
                "copy the model again, or give --allow-nan to import them as they are"
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
            architecture=folder.architecture.model_dump(mode="json"),
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


class _NonfiniteScreen:
    """Checks every chunk as it is written, and remembers those with NaN or infinite values."""

    def __init__(self, folder: HfFolder) -> None:
        self.folder = folder
        self.suspects: set[tuple[str, int]] = set()
        """Megatron's key, and the layer for a tensor of the decoder."""

    def watch(self, chunk: Chunk) -> Chunk:
        """The same chunk, which is checked when it is read."""

        def read() -> torch.Tensor:
            tensor = chunk.read()
            if not is_finite(tensor):
                self.suspects.add((chunk.key, chunk.offsets[0]))
            return tensor

        return replace(chunk, read=read)

    def nonfinite(self) -> dict[str, int]:
        """The number of NaN or infinite values by Hugging Face tensor."""
        rules = {rule.key: rule for rule in self.folder.family.rules_of(self.folder.architecture)}
        names = {
            name for key, layer in self.suspects for name in rules[key].names(layer if rules[key].in_layers else None)
        }
        counts = {name: count_nonfinite(self.folder.tensor(name)) for name in sorted(names)}
        return {name: count for name, count in counts.items() if count}


def rank_chunks(folder: HfFolder, layout: Parallel, tensor_rank: int, pipeline_rank: int) -> Iterator[Chunk]:
    """The chunks that one rank of a layout stores, in the order in which they are written."""
    layers, sizes = folder.architecture.num_hidden_layers, sizes_of(folder.architecture)
    for rule in folder.family.rules_of(folder.architecture):
        for layer in range(layers) if rule.in_layers else [None]:
            if pipeline_rank_of(rule, layer, layers, layout) != pipeline_rank:
                continue
            for cut in cuts(rule, sizes, tensor_rank, layout.tensor):
                yield _chunk(folder, rule, layer, cut)


def _chunk(folder: HfFolder, rule: Rule, layer: int | None, cut: Cut) -> Chunk:
    shape, dim = list(rule.shape(sizes_of(folder.architecture))), rule.split or 0
    extent, offsets = list(shape), [0] * len(shape)
    extent[dim], offsets[dim] = cut.length, cut.start
    if layer is not None:
        shape, extent, offsets = [folder.architecture.num_hidden_layers, *shape], [1, *extent], [layer, *offsets]
    return Chunk(
        key=rule.key,
        size=tuple(shape),
        offsets=tuple(offsets),
        extent=tuple(extent),
        dtype=folder.tensors[rule.names(layer)[0]].dtype,
        read=partial(_read_cut, folder, rule, layer, cut),
    )


def _read_cut(folder: HfFolder, rule: Rule, layer: int | None, cut: Cut) -> torch.Tensor:
    """One part of a Megatron tensor, made from Hugging Face tensors; a view of a mapped file if nothing is joined."""
    names, start, dim = rule.names(layer), cut.start, rule.split or 0
    if rule.join.bands == len(names):  # each band is one tensor, so only that one is read
        band, start = divmod(cut.start, rule.shape(sizes_of(folder.architecture))[dim] // rule.join.bands)
        whole = folder.tensor(names[band])
    else:
        whole = rule.join.join([folder.tensor(name) for name in names], folder.architecture)
    return whole.narrow(dim, start, cut.length)
