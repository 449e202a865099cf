"""A Megatron checkpoint folder: the model it holds, and whether its tensors are those of that model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_octo.bridge.config import architecture_of, read_config
from megatron_octo.bridge.families import family_of
from megatron_octo.bridge.torch_dist_reader import TorchDistReader
from megatron_octo.bridge.weight_map import Rule, sizes_of
from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import validated
from megatron_octo.recipe import Architecture
from megatron_octo.runtime.checkpoints import MANIFEST, check_sizes, read_checkpoint_manifest
from megatron_octo.runtime.files import sha256_of

_MOST_TENSOR_RANKS = 64


@dataclass(frozen=True)
class MegatronFolder:
    """A checkpoint whose tensors are those of its architecture."""

    path: Path
    architecture: Architecture
    reader: TorchDistReader
    digest: str | None
    """SHA-256 of its manifest. None: another program saved it."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The weight map of its tensors."""
        return family_of(self.architecture.model_type, str(self.path)).rules_of(self.architecture)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its largest tensor."""
        return self.reader.dtype(self.rules[0].key)


def open_megatron_folder(folder: Path, config: Path | None = None) -> MegatronFolder:
    """Compare the tensors that a checkpoint has with those of its architecture. No tensor is read.

    Args:
        config: a Hugging Face folder whose `config.json` gives the architecture of a checkpoint without a manifest of
            ours, such as one that Megatron-LM saved. If there is a manifest, both must agree.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or tensors that are missing, surplus or of another shape.
    """
    digest, architecture = None, None
    if (folder / MANIFEST).is_file():
        manifest = read_checkpoint_manifest(folder)
        check_sizes(folder, manifest)
        where, digest = f"{folder / MANIFEST}: architecture", sha256_of(folder / MANIFEST)
        architecture = validated(manifest.architecture, Architecture, where, CheckpointError, "use another checkpoint")
    reader = TorchDistReader(folder)
    configured = architecture_of(read_config(config), str(config)) if config is not None else None
    if architecture is not None and configured is not None and (changed := architecture.differences(configured)):
        raise CheckpointError(
            f"{folder} and {config} are of different architectures ({'; '.join(changed)}); give a pair of one model"
        )
    architecture = architecture or configured
    if architecture is None:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so it does not say which model it is of; pass --config with a Hugging Face "
            "folder of the same model"
        )
    checkpoint = MegatronFolder(folder, architecture, reader, digest)
    if problems := sorted(_problems(checkpoint)):
        raise CheckpointError(
            f"{folder}: not a checkpoint of this architecture:\n  " + "\n  ".join(problems[:12]) + "\n"
            "give the architecture it was trained with (--config), or another checkpoint"
        )
    return checkpoint


def is_padded(rows: int, vocabulary: int) -> bool:
    """Whether `rows` is a vocabulary padded as Megatron does: to a multiple of the tensor ranks, or of 128 x them."""
    multiples = [multiple * ranks for ranks in range(1, _MOST_TENSOR_RANKS + 1) for multiple in (1, 128)]
    return any(rows == -(-vocabulary // multiple) * multiple for multiple in multiples)


def _problems(checkpoint: MegatronFolder) -> Iterator[str]:
    sizes, reader, layers = (
        sizes_of(checkpoint.architecture),
        checkpoint.reader,
        checkpoint.architecture.num_hidden_layers,
    )
    rules = {rule.key: rule for rule in checkpoint.rules}
    for key in rules.keys() - reader.keys:
        yield f"{key}: missing"
    for key in reader.keys - rules.keys():
        yield f"{key}: surplus, of shape {list(reader.size(key))}"
    for key in rules.keys() & reader.keys:
        expected = rules[key].shape(sizes)
        expected = (layers, *expected) if rules[key].in_layers else expected
        found = reader.size(key)
        is_vocabulary = rules[key].parts[0].shape[0] == "vocabulary"
        fits = found == expected or (is_vocabulary and found[1:] == expected[1:] and is_padded(found[0], expected[0]))
        if not fits:
            yield f"{key}: of shape {list(found)}, not {list(expected)}"
