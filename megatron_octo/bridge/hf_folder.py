"""A Hugging Face folder: its tensors, read one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_octo.bridge.config import DTYPE_NAMES, architecture_of, read_config
from megatron_octo.bridge.families import family_of
from megatron_octo.bridge.weight_map import Family, sizes_of
from megatron_octo.errors import ModelError
from megatron_octo.reading.json_text import json_kind, read_json_object, shortened
from megatron_octo.recipe import Architecture
from megatron_octo.runtime.links import check_inside

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_HEADER_BYTES = 32 << 20
"""A tensor takes about 120 bytes. The library itself accepts up to 100 MB."""
_LONGEST_NAME = 200
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Stored:
    """A stored tensor and its file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class HfFolder:
    """A model as Hugging Face stores it, whose tensors are those of its configuration."""

    path: Path
    config: dict[str, Any]
    architecture: Architecture
    family: Family
    tensors: dict[str, Stored]

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        return sum(stored.bytes for stored in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the weights have."""
        by_dtype: dict[torch.dtype, int] = {}
        for stored in self.tensors.values():
            by_dtype[stored.dtype] = by_dtype.get(stored.dtype, 0) + stored.bytes
        return max(by_dtype, key=lambda dtype: by_dtype[dtype])

    @property
    def files(self) -> list[Path]:
        """The files that hold its weights."""
        return sorted({stored.file for stored in self.tensors.values()})

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor.

        The file is opened for this tensor alone. A mapping that stays open keeps every page that was read, so a loop
        over all tensors would end with the whole model in memory.
        """
        with safe_open(self.tensors[name].file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


def open_hf_folder(path: Path) -> HfFolder:
    """Compare the tensors that a folder has with those of its configuration. No weight is read.

    Raises:
        ModelError: no model, an unknown architecture, RoPE that Megatron-Core cannot compute, or tensors that are
            missing, surplus, or of another shape or dtype, by name.
    """
    config = read_config(path)
    architecture = architecture_of(config, str(path))
    family = family_of(architecture.model_type, str(path))
    found = {name: at for name, at in _stored(path) if not name.endswith(family.ignored or ("\0",))}
    folder = HfFolder(path, config, architecture, family, found)
    tied_copy = _tied_copy(folder)
    if tied_copy is not None:
        del found[tied_copy]
    if problems := sorted(_problems(folder)):
        shown = problems[:12] + ([f"and {len(problems) - 12} more"] if len(problems) > 12 else [])
        raise ModelError(
            f"{path}: the weights are not those of its configuration:\n  "
            + "\n  ".join(shown)
            + "\ncopy the folder again, or correct config.json"
        )
    return folder


def _tied_copy(folder: HfFolder) -> str | None:
    """The name of a stored output weight that only repeats the embedding; None if there is none.

    Raises:
        ModelError: it differs from the embedding, so the model is not tied.
    """
    (output,), (embedding,) = folder.family.output.names(None), folder.family.rules[0].names(None)
    if not folder.architecture.tie_word_embeddings or not {output, embedding} <= folder.tensors.keys():
        return None
    if folder.tensors[output].shape != folder.tensors[embedding].shape or not torch.equal(
        folder.tensor(output), folder.tensor(embedding)
    ):
        raise ModelError(
            f"{folder.path}: tie_word_embeddings is true, but {output} differs from {embedding}; "
            "set tie_word_embeddings to false in config.json, or remove the output weight"
        )
    return output


def _problems(folder: HfFolder) -> Iterator[str]:
    sizes = sizes_of(folder.architecture)
    expected: dict[str, tuple[int, ...]] = {}
    for rule in folder.family.rules_of(folder.architecture):
        for layer in range(folder.architecture.num_hidden_layers) if rule.in_layers else [None]:
            expected |= dict(zip(rule.names(layer), rule.part_shapes(sizes), strict=True))
    for name in expected.keys() - folder.tensors.keys():
        yield f"{name}: missing, of shape {list(expected[name])}"
    for name in folder.tensors.keys() - expected.keys():
        yield f"{shortened(name)}: surplus, of shape {_shown(folder.tensors[name].shape)}"
    for name in expected.keys() & folder.tensors.keys():
        if folder.tensors[name].shape != expected[name]:
            yield f"{name}: of shape {_shown(folder.tensors[name].shape)}, not {list(expected[name])}"
    yield from _mixed_dtypes(folder)


def _shown(shape: tuple[int, ...]) -> str:
    return shortened(str(list(shape)), 80)


def _mixed_dtypes(folder: HfFolder) -> Iterator[str]:
    """Megatron stores a tensor of all layers under one dtype: a layer with another dtype would be rounded silently."""
    for rule in folder.family.rules_of(folder.architecture):
        layers = range(folder.architecture.num_hidden_layers) if rule.in_layers else [None]
        names = [name for layer in layers for name in rule.names(layer) if name in folder.tensors]
        dtypes = [folder.tensors[name].dtype for name in names]
        usual = max(set(dtypes), key=dtypes.count, default=None)
        for name, dtype in zip(names, dtypes, strict=True):
            if dtype != usual:
                yield f"{name}: {dtype}, but {usual} in other layers or parts; cast the model to one dtype"


def _stored(path: Path) -> Iterator[tuple[str, Stored]]:
    seen: dict[str, Path] = {}
    for name in _shards(path):
        if not (path / name).is_file():
            has_bin = any(path.glob("*.bin"))
            hint = "convert its .bin files to safetensors first" if has_bin else "copy the folder again"
            raise ModelError(f"{path}: {name} is not there; {hint}")
        check_inside(path, path / name, ModelError)
        for tensor, stored in _header(path / name):
            if tensor in seen:
                raise ModelError(
                    f"{path}: {shortened(tensor)} is in {seen[tensor].name} and in {name}; copy the folder again"
                )
            seen[tensor] = stored.file
            yield tensor, stored


def _shards(path: Path) -> list[str]:
    """Names of the files that hold the weights."""
    if (path / SINGLE).is_file() or not (path / INDEX).is_file():  # with both, transformers takes the single file
        return [SINGLE]
    check_inside(path, path / INDEX, ModelError)
    weight_map = read_json_object(path / INDEX, ModelError, needs=("weight_map",))["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path / INDEX}: weight_map is {json_kind(weight_map)}, not an object; copy it again")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or len(name) > _LONGEST_NAME:
            raise ModelError(
                f"{path / INDEX}: {shortened(tensor)} is listed in {shortened(repr(name))}, which is not the name of a "
                "file in the same folder; copy it again"
            )
    return sorted(set(weight_map.values()))


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with open(file, "rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ModelError(
                f"{file}: its header claims {length:,} bytes, and at most {_MOST_HEADER_BYTES:,} are read; "
                "copy it again"
            )
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                entry = opened.get_slice(name)
                if entry.get_dtype() not in _DTYPES:
                    raise ModelError(
                        f"{file}: {shortened(name)} is of dtype {entry.get_dtype()}; weights of "
                        f"{', '.join(DTYPE_NAMES.values())} can be converted: dequantize the model first"
                    )
                yield name, Stored(file, tuple(entry.get_shape()), _DTYPES[entry.get_dtype()])
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: not a complete safetensors file ({shortened(str(error))}); copy it again") from None
