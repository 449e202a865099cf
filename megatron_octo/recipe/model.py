"""What is trained: an architecture in Hugging Face's own names, a tokenizer, and where the weights start."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from megatron_octo.recipe.base import Section


class Llama3RopeScaling(Section):
    """RoPE scaling of Llama 3.1 and later, in Hugging Face's names."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt = 8192


class Architecture(Section):
    """The fields of a Hugging Face `config.json` that decide the model's shape."""

    model_type: Literal["llama", "qwen2"]
    hidden_size: int = Field(gt=0, le=1 << 20)
    num_hidden_layers: int = Field(gt=0, le=4096)
    num_attention_heads: int = Field(gt=0, le=1 << 14)
    num_key_value_heads: int = Field(gt=0, le=1 << 14)
    head_dim: int | None = Field(default=None, gt=0, le=1 << 14)
    """None means hidden_size / num_attention_heads."""
    intermediate_size: int = Field(gt=0, le=1 << 22)
    vocab_size: int = Field(gt=0, le=1 << 24)
    max_position_embeddings: int = Field(gt=0, le=1 << 30)
    rms_norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Bias on the query, key and value projections: true for Qwen2."""
    initializer_range: PositiveFloat = 0.02

    @property
    def kv_channels(self) -> int:
        """Size of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def differences(self, other: "Architecture") -> list[str]:
        """Fields in which two architectures do not compute the same, each with both values.

        How weights were first drawn is left out, and a `head_dim` that is written out equals one that follows.
        """
        mine, theirs = (
            shape.model_dump(mode="json", exclude={"initializer_range"}) | {"head_dim": shape.kv_channels}
            for shape in (self, other)
        )
        return [f"{key} is {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    def num_parameters(self) -> int:
        """Parameters, with tied embeddings counted once."""
        h, d = self.hidden_size, self.kv_channels
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        attention = h * (q + 2 * kv) + q * h + ((q + 2 * kv) if self.attention_bias else 0)
        layer = attention + 3 * h * self.intermediate_size + 2 * h
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + h

    def flops_per_token(self, sequence_length: int) -> float:
        """Floating-point operations of forward and backward for one token of a causal sequence.

        Six per weight that a token is multiplied with (the embedding look-up is none), and
        6 * layers * sequence_length * heads * head_dim for the causal half of attention's two products.
        Source: PaLM, arXiv 2204.02311, appendix B, with causal attention counted at half.
        """
        h, d = self.hidden_size, self.kv_channels
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        matmul = self.num_hidden_layers * (h * (q + 2 * kv) + q * h + 3 * h * self.intermediate_size)
        matmul += self.vocab_size * h
        return 6.0 * matmul + 6.0 * self.num_hidden_layers * sequence_length * q


class ModelSection(Section):
    """The model of a recipe."""

    base: str | None = None
    """Published weights the lineage starts from: a folder, or a hub name. None: random weights."""
    base_revision: str | None = None
    """Revision (commit) of the hub repository of `base`."""
    initialize: Literal["base", "random"] = "base"
    """Start from the weights of `base`, or from random ones of its shape."""
    architecture: Architecture
    tokenizer: str
    """`builtin:bytes`, a folder with tokenizer.json, or a hub name."""
    tokenizer_revision: str | None = None
    end_of_document: str = Field(min_length=1)
    """The token written after every document; it must be one token of the tokenizer."""
