"""What a family's table is written in: one tensor of Megatron's, and the Hugging Face tensors it is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_octo.recipe import Architecture

Sizes = dict[str, int]


def sizes_of(shape: Architecture) -> Sizes:
    """The words that a table's shapes are written in, as numbers."""
    return {
        "vocabulary": shape.vocab_size,
        "hidden": shape.hidden_size,
        "queries": shape.num_attention_heads * shape.kv_channels,
        "keys": shape.num_key_value_heads * shape.kv_channels,
        "ffn": shape.intermediate_size,
    }


class Join(Protocol):
    """How Hugging Face tensors lie in Megatron's; `separate(join(parts))` gives the parts back."""

    bands: int
    """Parts of Megatron's tensor that are cut over the tensor ranks each by itself."""

    def join(self, parts: Sequence[torch.Tensor], shape: Architecture) -> torch.Tensor:
        """Hugging Face's tensors, in the table's order, to Megatron's."""

    def separate(self, whole: torch.Tensor, shape: Architecture) -> list[torch.Tensor]:
        """Megatron's tensor to Hugging Face's; views where that is possible."""


class AsIs:
    """The same tensor under another name."""

    bands = 1

    def join(self, parts: Sequence[torch.Tensor], shape: Architecture) -> torch.Tensor:
        (part,) = parts
        return part

    def separate(self, whole: torch.Tensor, shape: Architecture) -> list[torch.Tensor]:
        return [whole]


class GateAboveUp:
    """The gate's and the up projection's rows, one block above the other: (2 * ffn, hidden)."""

    bands = 2

    def join(self, parts: Sequence[torch.Tensor], shape: Architecture) -> torch.Tensor:
        return torch.cat(list(parts), dim=0)

    def separate(self, whole: torch.Tensor, shape: Architecture) -> list[torch.Tensor]:
        return list(whole.chunk(2, dim=0))


class QueryKeyValue:
    """Rows by key-value group: the group's queries, then its key, then its value.

    (groups * (heads / groups + 2) * head_dim, ...), so that a tensor rank's rows are whole groups.
    """

    bands = 1

    def join(self, parts: Sequence[torch.Tensor], shape: Architecture) -> torch.Tensor:
        groups, head_dim = shape.num_key_value_heads, shape.kv_channels
        by_group = [part.view(groups, -1, head_dim, *part.shape[1:]) for part in parts]
        return torch.cat(by_group, dim=1).flatten(0, 2)

    def separate(self, whole: torch.Tensor, shape: Architecture) -> list[torch.Tensor]:
        groups, head_dim = shape.num_key_value_heads, shape.kv_channels
        queries = shape.num_attention_heads // groups
        by_group = whole.view(groups, queries + 2, head_dim, *whole.shape[1:])
        return [part.flatten(0, 2) for part in by_group.split([queries, 1, 1], dim=1)]


AS_IS, GATE_ABOVE_UP, QUERY_KEY_VALUE = AsIs(), GateAboveUp(), QueryKeyValue()


@dataclass(frozen=True)
class Part:
    """A Hugging Face tensor."""

    name: str
    """With `{}` where the layer's number stands."""
    shape: tuple[str, ...]
    """In the words of `sizes_of`."""


@dataclass(frozen=True)
class Rule:
    """A tensor of Megatron's checkpoint."""

    key: str
    """Its name there; the tensors of all layers stand stacked under one."""
    parts: tuple[Part, ...]
    join: Join = AS_IS
    split: int | None = None
    """The dimension that tensor parallelism cuts; None: every tensor rank has it whole."""

    @property
    def in_layers(self) -> bool:
        """Whether there is one in every layer."""
        return "{}" in self.parts[0].name

    def names(self, layer: int | None) -> list[str]:
        """The Hugging Face names of its parts in a layer."""
        return [part.name.format(layer) for part in self.parts]

    def part_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The Hugging Face shapes of its parts."""
        return [tuple(sizes[word] for word in part.shape) for part in self.parts]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Megatron's shape in one layer, without tensor parallelism or padding: parts are joined along rows."""
        shapes = self.part_shapes(sizes)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


@dataclass(frozen=True)
class Family:
    """Architectures that share a table."""

    model_type: str
    """Hugging Face's `model_type`."""
    class_name: str
    """The class of `transformers` that computes it, which `config.json` names."""
    rules: tuple[Rule, ...]
    """For a model whose output weight is its own."""
    output: Rule
    """Left out where the embedding is the output weight."""
    ignored: tuple[str, ...] = ()
    """Ends of names that hold no weight and are passed over."""

    def rules_of(self, shape: Architecture) -> tuple[Rule, ...]:
        """The table of one model."""
        return self.rules if shape.tie_word_embeddings else (*self.rules, self.output)


def in_order(rules: tuple[Rule, ...], layers: int) -> Iterator[tuple[Rule, int | None]]:
    """A table's tensors as a model has them: embedding, layer by layer, what comes after."""
    repeated = [rule for rule in rules if rule.in_layers]
    first = rules.index(repeated[0])
    yield from ((rule, None) for rule in rules[:first])
    yield from ((rule, layer) for layer in range(layers) for rule in repeated)
    yield from ((rule, None) for rule in rules[first:] if not rule.in_layers)
