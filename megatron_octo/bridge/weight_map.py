"""The vocabulary of weight maps: a Megatron tensor, and the Hugging Face tensors that it is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_octo.recipe import Architecture

Sizes = dict[str, int]


def sizes_of(architecture: Architecture) -> Sizes:
    """The numbers behind the words that a table's shapes are written in."""
    return {
        "vocabulary": architecture.vocab_size,
        "hidden": architecture.hidden_size,
        "queries": architecture.num_attention_heads * architecture.kv_channels,
        "keys": architecture.num_key_value_heads * architecture.kv_channels,
        "ffn": architecture.intermediate_size,
    }


class Join(Protocol):
    """How Hugging Face tensors are laid out in a Megatron tensor; `separate` is the inverse of `join`."""

    bands: int
    """Number of equal parts of Megatron's tensor, each of which is split over the tensor ranks separately."""

    def join(self, parts: Sequence[torch.Tensor], architecture: Architecture) -> torch.Tensor:
        """The Megatron tensor of Hugging Face tensors, given in the table's order."""

    def separate(self, whole: torch.Tensor, architecture: Architecture) -> list[torch.Tensor]:
        """The Hugging Face tensors of a Megatron tensor; views where possible."""


class AsIs:
    """The same tensor under another name."""

    bands = 1

    def join(self, parts: Sequence[torch.Tensor], architecture: Architecture) -> torch.Tensor:
        (part,) = parts
        return part

    def separate(self, whole: torch.Tensor, architecture: Architecture) -> list[torch.Tensor]:
        return [whole]


class GateAboveUp:
    """The rows of the gate, then the rows of the up projection: (2 * ffn, hidden)."""

    bands = 2

    def join(self, parts: Sequence[torch.Tensor], architecture: Architecture) -> torch.Tensor:
        return torch.cat(list(parts), dim=0)

    def separate(self, whole: torch.Tensor, architecture: Architecture) -> list[torch.Tensor]:
        return list(whole.chunk(2, dim=0))


class QueryKeyValue:
    """Rows by key-value group: the group's queries, then its key, then its value.

    The shape is (groups * (heads / groups + 2) * head_dim, ...). A tensor rank's rows are whole groups.
    """

    bands = 1

    def join(self, parts: Sequence[torch.Tensor], architecture: Architecture) -> torch.Tensor:
        groups, head_dim = architecture.num_key_value_heads, architecture.kv_channels
        by_group = [part.view(groups, -1, head_dim, *part.shape[1:]) for part in parts]
        return torch.cat(by_group, dim=1).flatten(0, 2)

    def separate(self, whole: torch.Tensor, architecture: Architecture) -> list[torch.Tensor]:
        groups, head_dim = architecture.num_key_value_heads, architecture.kv_channels
        queries = architecture.num_attention_heads // groups
        by_group = whole.view(groups, queries + 2, head_dim, *whole.shape[1:])
        return [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]


AS_IS, GATE_ABOVE_UP, QUERY_KEY_VALUE = AsIs(), GateAboveUp(), QueryKeyValue()


@dataclass(frozen=True)
class Part:
    """A Hugging Face tensor."""

    name: str
    """With `{}` in place of the layer's number."""
    shape: tuple[str, ...]
    """In the words of `sizes_of`."""


@dataclass(frozen=True)
class Rule:
    """A tensor of a Megatron checkpoint."""

    key: str
    """Its name in the checkpoint, where the tensors of all layers are stacked under one name."""
    parts: tuple[Part, ...]
    join: Join = AS_IS
    split: int | None = None
    """The dimension that tensor parallelism splits. None: every tensor rank has the whole tensor."""

    @property
    def in_layers(self) -> bool:
        """Whether every layer has one."""
        return "{}" in self.parts[0].name

    def names(self, layer: int | None) -> list[str]:
        """The Hugging Face names of its parts in a layer."""
        return [part.name.format(layer) for part in self.parts]

    def part_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The Hugging Face shapes of its parts."""
        return [tuple(sizes[word] for word in part.shape) for part in self.parts]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape in one layer, without tensor parallelism or padding. Parts are joined along the rows."""
        shapes = self.part_shapes(sizes)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True)
class Family:
    """Architectures that share a table."""

    model_type: str
    """Hugging Face's `model_type`."""
    class_name: str
    """The class of `transformers` that computes the model, which `config.json` names."""
    rules: tuple[Rule, ...]
    """The table of a model whose output weight is tied to the embedding."""
    output: Rule
    """The additional rule of a model with an output weight of its own."""
    ignored: tuple[str, ...] = ()
    """Suffixes of tensor names that are no weights and are skipped."""

    def rules_of(self, architecture: Architecture) -> tuple[Rule, ...]:
        """The table of one model."""
        return self.rules if architecture.tie_word_embeddings else (*self.rules, self.output)


def in_order(rules: tuple[Rule, ...], layers: int) -> Iterator[tuple[Rule, int | None]]:
    """A table's tensors in the order of the model: the embedding, layer by layer, the rest."""
    repeated = [rule for rule in rules if rule.in_layers]
    first = rules.index(repeated[0])
    yield from ((rule, None) for rule in rules[:first])
    yield from ((rule, layer) for layer in range(layers) for rule in repeated)
    yield from ((rule, None) for rule in rules[first:] if not rule.in_layers)
