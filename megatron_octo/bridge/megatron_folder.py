"""A Megatron checkpoint folder: what model it is of, and whether its tensors are those it should have."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_octo.bridge.config import architecture_of, read_config
from megatron_octo.bridge.families import family_of
from megatron_octo.bridge.torch_dist import TorchDistReader
from megatron_octo.bridge.weight_map import Rule, sizes_of
from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import validated
from megatron_octo.recipe import Architecture
from megatron_octo.runtime.checkpoints import MANIFEST, check_sizes, read_checkpoint_manifest
from megatron_octo.runtime.files import sha256_of

_MOST_TENSOR_RANKS = 64


@dataclass(frozen=True)
class MegatronFolder:
    """A checkpoint whose tensors are those its architecture asks for."""

    path: Path
    shape: Architecture
    reader: TorchDistReader
    digest: str | None
    """SHA-256 of its manifest; None for one that another program saved."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The table it is read by."""
        return family_of(self.shape.model_type, str(self.path)).rules_of(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its largest tensor."""
        return self.reader.dtype(self.rules[0].key)


def open_megatron_folder(folder: Path, config: Path | None = None) -> MegatronFolder:
    """Compare what a checkpoint has with what its architecture asks for. No tensor is read.

    Args:
        config: a Hugging Face folder whose `config.json` says the shape of a checkpoint that has no manifest of ours
            (one that Megatron-LM saved). Where there is one, both must say the same.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or tensors that are missing, surplus or of another shape.
    """
    digest, shape = None, None
    if (folder / MANIFEST).is_file():
        manifest = read_checkpoint_manifest(folder)
        check_sizes(folder, manifest)
        where, digest = f"{folder / MANIFEST}: architecture", sha256_of(folder / MANIFEST)
        shape = validated(manifest.architecture, Architecture, where, CheckpointError, "use another checkpoint")
    reader = TorchDistReader(folder)
    told = architecture_of(read_config(config), str(config)) if config is not None else None
    if shape is not None and told is not None and (changed := shape.differences(told)):
        raise CheckpointError(
            f"{folder} and {config} are of different architectures ({'; '.join(changed)}); give a pair of one model"
        )
    shape = shape or told
    if shape is None:
        raise CheckpointError(
            f"{folder}: no {MANIFEST}, so it does not say what model it is; pass --config with a Hugging Face folder "
            "of the same model"
        )
    checkpoint = MegatronFolder(folder, shape, reader, digest)
    if problems := sorted(_problems(checkpoint)):
        raise CheckpointError(
            f"{folder}: not a checkpoint of this architecture:\n  " + "\n  ".join(problems[:12]) + "\n"
            "give the architecture it was trained with (--config), or another checkpoint"
        )
    return checkpoint


def is_padded(rows: int, vocabulary: int) -> bool:
    """Whether rows are a vocabulary rounded up as Megatron does: to the tensor ranks, or to 128 times as many."""
    multiples = [multiple * ranks for ranks in range(1, _MOST_TENSOR_RANKS + 1) for multiple in (1, 128)]
    return any(rows == -(-vocabulary // multiple) * multiple for multiple in multiples)


def _problems(checkpoint: MegatronFolder) -> Iterator[str]:
    sizes, reader, layers = sizes_of(checkpoint.shape), checkpoint.reader, checkpoint.shape.num_hidden_layers
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
