"""Random initial weights that do not depend on the layout."""

import hashlib
import math
import re

import torch
from megatron.core import parallel_state

from megatron_octo.model.gpt import GPTModelWithLoss

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
# two residual branches per layer add their outputs to the residual stream; scaling them down keeps its variance
# constant over the depth (GPT-2, and Megatron's scaled_init_method_normal)
_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")

_VOCABULARY = ("word_embeddings.weight", "output_layer.weight")


@torch.no_grad()
def initialize_random(chunks: list[GPTModelWithLoss], seed: int) -> None:
    """Fill the weights: normal with the configured standard deviation; norms one, biases zero.

    Each tensor is drawn whole on the CPU from a generator seeded by (seed, its global name), and this rank keeps its
    slice, so the model is the same at every layout.
    """
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.copy_(_slice(name, _draw(_global_name(chunk, name), parameter, chunk, seed), parameter))


def _global_name(chunk: GPTModelWithLoss, name: str) -> str:
    """The parameter's name, with the layer's number in the whole model instead of in this chunk."""
    match = _LAYER.match(name)
    if match is None:
        # the tied copy of the embedding on the last pipeline rank is the embedding
        if name == "output_layer.weight" and chunk.share_embeddings_and_output_weights:
            return "embedding.word_embeddings.weight"
        return name
    number = chunk.decoder.layers[int(match.group(1))].layer_number - 1
    return f"decoder.layers.{number}." + name[match.end() :]


def _draw(name: str, parameter: torch.Tensor, chunk: GPTModelWithLoss, seed: int) -> torch.Tensor:
    """The whole tensor, in its shape without tensor parallelism."""
    shape = list(parameter.shape)
    if getattr(parameter, "tensor_model_parallel", False):
        dim = parameter.partition_dim  # type: ignore[attr-defined]
        shape[dim] *= parallel_state.get_tensor_model_parallel_world_size()
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    config = chunk.config
    deviation: float = config.init_method_std
    if name.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_layers)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if name.endswith(_VOCABULARY) and shape[0] > chunk.true_vocab_size:
        drawn = torch.randn([chunk.true_vocab_size, *shape[1:]], generator=generator)
        return torch.cat([drawn * deviation, torch.zeros(shape[0] - chunk.true_vocab_size, *shape[1:])])
    return torch.randn(shape, generator=generator) * deviation


def _slice(name: str, whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This tensor rank's part of a whole tensor."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    dim: int = parameter.partition_dim  # type: ignore[attr-defined]
    rank, size = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    if name.endswith("linear_fc1.weight"):
        # every rank holds rows of the gate, then rows of the up projection, so each half is split separately
        return torch.cat([half.chunk(size, dim)[rank] for half in whole.chunk(2, dim)], dim)
    part: torch.Tensor = whole.chunk(size, dim)[rank]
    return part
