"""The model to train: an architecture in Hugging Face's own names, a tokenizer, and where the weights start."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from megatron_octo.recipe.base import Problem, Section

BYTES_TOKENIZER = "builtin:bytes"
"""One token for each byte of UTF-8, then the special tokens, then the two that enclose a thought."""
BYTES_SPECIAL = ("<|endoftext|>", "<|pad|>")
BYTES_THOUGHT = ("<think>", "</think>")
_BYTES_VOCABULARY = 256 + len(BYTES_SPECIAL) + len(BYTES_THOUGHT)


class Llama3RopeScaling(Section):
    """RoPE scaling of Llama 3.1 and later, in Hugging Face's names."""

    rope_type: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt = 8192

    def problems(self) -> Iterator[Problem]:
        """Values that Megatron-Core would silently replace.

        `RotaryEmbedding._apply_scaling` of megatron-core 0.16.1 has the defaults above, and GPTModel passes no others.
        """
        for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            value, expected = getattr(self, key), type(self).model_fields[key].default
            if value != expected:
                why = f"Megatron-Core computes with {expected} only"
                yield Problem(key, value, why, "a model with another value cannot be trained here")


class Architecture(Section):
    """The fields of a Hugging Face `config.json` that decide what the model computes."""

    model_type: Literal["llama", "qwen2"]
    hidden_size: int = Field(gt=0, le=1 << 20)
    num_hidden_layers: int = Field(gt=0, le=4096)
    num_attention_heads: int = Field(gt=0, le=1 << 14)
    num_key_value_heads: int = Field(gt=0, le=1 << 14)
    head_dim: int | None = Field(default=None, gt=0, le=1 << 14)
    """None: hidden_size / num_attention_heads."""
    intermediate_size: int = Field(gt=0, le=1 << 22)
    vocab_size: int = Field(gt=0, le=1 << 24)
    max_position_embeddings: int = Field(gt=0, le=1 << 30)
    rms_norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Biases on the query, key and value projections: true for Qwen2, false for Llama."""
    initializer_range: PositiveFloat = 0.02

    @property
    def kv_channels(self) -> int:
        """Size of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def differences(self, other: "Architecture") -> list[str]:
        """Fields in which two architectures compute something different, each with both values.

        `initializer_range` does not count, and an explicit `head_dim` equals the same implied one.
        """
        mine, theirs = (
            architecture.model_dump(mode="json", exclude={"initializer_range"}) | {"head_dim": architecture.kv_channels}
            for architecture in (self, other)
        )
        return [f"{key} is {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]

    def problems(self) -> Iterator[Problem]:
        """Numbers that do not divide each other, and biases that the family does not have."""
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            why = f"does not divide hidden_size {self.hidden_size}"
            yield Problem("num_attention_heads", heads, why, "change one of them or set head_dim")
        elif self.kv_channels % 2:
            yield Problem("head_dim", self.kv_channels, "RoPE needs an even head", "make it even")
        if heads % groups:
            why = f"does not divide num_attention_heads {heads}"
            yield Problem("num_key_value_heads", groups, why, "choose a divisor")
        has_bias = self.model_type == "qwen2"
        if self.attention_bias != has_bias:
            why = f"a {self.model_type} model has {'' if has_bias else 'no '}biases on query, key and value"
            yield Problem("attention_bias", self.attention_bias, why, f"set it to {str(has_bias).lower()}")

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

        Six for each weight in a matrix product (the embedding look-up is none), and
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
    """Published weights to start from: a folder, or a hub name. None: random weights."""
    base_revision: str | None = None
    """Revision (commit) of the hub repository of `base`."""
    initialize: Literal["base", "random"] = "base"
    """Start from the weights of `base`, or from random weights of the same architecture."""
    architecture: Architecture
    tokenizer: str
    """`builtin:bytes`, a folder with tokenizer.json, or a hub name."""
    tokenizer_revision: str | None = None
    end_of_document: str = Field(min_length=1)
    """The token after every document; it must be one token of the tokenizer."""

    def problems(self) -> Iterator[Problem]:
        """A base that is not named, and what does not fit the built-in tokenizer."""
        if self.initialize == "base" and self.base is None:
            way_out = "name the base, or set model.initialize=random"
            yield Problem("initialize", "base", "model.base is not set", way_out)
        if self.tokenizer == BYTES_TOKENIZER:
            yield from self._bytes_problems()
        elif self.tokenizer.startswith("builtin:"):
            yield Problem("tokenizer", self.tokenizer, "there is no such built-in tokenizer", f"set {BYTES_TOKENIZER}")

    def _bytes_problems(self) -> Iterator[Problem]:
        if self.architecture.vocab_size < _BYTES_VOCABULARY:
            why = f"{BYTES_TOKENIZER} has {_BYTES_VOCABULARY} tokens"
            yield Problem("architecture.vocab_size", self.architecture.vocab_size, why, "raise it")
        end = self.end_of_document
        is_one_byte = len(end) == 1 and "!" <= end <= "~"
        if not is_one_byte and end not in (*BYTES_SPECIAL, *BYTES_THOUGHT):
            way_out = f"choose one of its special tokens: {', '.join(BYTES_SPECIAL)}"
            yield Problem("end_of_document", end, f"not one token of {BYTES_TOKENIZER}", way_out)
