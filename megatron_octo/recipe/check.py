"""Checks that look across sections. Each problem names the key, the value and the way out."""

import difflib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from megatron_octo.reading.json_text import shortened
from megatron_octo.recipe.model import Architecture
from megatron_octo.recipe.recipe import Recipe
from megatron_octo.recipe.stage import BASE
from megatron_octo.recipe.train import Parallel

WEIGHT_TOLERANCE = 1e-6
LEARNING_RATE_TOLERANCE = 1e-9
MOST_SAMPLES = 2**31 - 1
"""Samples of a stage: Megatron's index of them takes tens of bytes for each."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe."""

    key: str
    value: object
    why: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.key} = {shortened(repr(self.value))}: {self.why}; {self.way_out}"


def problems_of(recipe: Recipe) -> list[Problem]:
    """Everything wrong across the sections of a recipe that is well-formed section by section."""
    tree = list(_tree(recipe))
    if tree:  # what follows walks the tree, which must be one
        return tree
    return [*_architecture(recipe), *_mixtures(recipe), *_rates(recipe), *_layouts(recipe), *_batches(recipe)]


def _closest(word: str, words: Iterable[str]) -> str:
    words = list(words)
    match = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(words))}"


def _tree(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        key = f"stages.{name}.parent"
        if name == BASE:
            yield Problem(f"stages.{name}", name, f"{BASE!r} is the name of the base model", "choose another name")
            continue
        seen = [name]
        while (above := recipe.stages[seen[-1]].parent.stage) != BASE:
            if above not in recipe.stages:
                if len(seen) == 1:
                    way_out = _closest(above, [*recipe.stages, BASE])
                    yield Problem(key, above, "there is no such stage", way_out)
                break
            if above in seen:
                if above == name:
                    path = " -> ".join([*seen, above])
                    yield Problem(
                        key,
                        stage.parent.stage,
                        f"a stage cannot be its own ancestor ({path})",
                        f"start one from {BASE!r}",
                    )
                break
            seen.append(above)


def shape_problems(shape: Architecture, key: str = "model.architecture") -> Iterator[Problem]:
    """What keeps an architecture from being built, whoever describes it: a recipe or a config.json."""
    if shape.head_dim is None and shape.hidden_size % shape.num_attention_heads:
        yield Problem(
            f"{key}.num_attention_heads",
            shape.num_attention_heads,
            f"does not divide hidden_size {shape.hidden_size}",
            "change one of them or set head_dim",
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        yield Problem(
            f"{key}.num_key_value_heads",
            shape.num_key_value_heads,
            f"does not divide num_attention_heads {shape.num_attention_heads}",
            "choose a divisor",
        )
    if shape.kv_channels % 2:
        yield Problem(f"{key}.head_dim", shape.kv_channels, "RoPE needs an even head", "make it even")


def _architecture(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    shape = model.architecture
    yield from shape_problems(shape)
    if model.initialize == "base" and model.base is None:
        yield Problem(
            "model.initialize", "base", "model.base is not set", "name the base, or set model.initialize=random"
        )
    if recipe.train.sequence_length > shape.max_position_embeddings:
        yield Problem(
            "train.sequence_length",
            recipe.train.sequence_length,
            f"beyond model.architecture.max_position_embeddings {shape.max_position_embeddings}",
            "shorten it",
        )


def _mixtures(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        for source in stage.mixture:
            if source not in recipe.data.sources:
                yield Problem(
                    f"stages.{name}.mixture.{source}",
                    stage.mixture[source],
                    "there is no such source under data.sources",
                    _closest(source, recipe.data.sources),
                )
        total = math.fsum(stage.mixture.values())
        if abs(total - 1.0) > WEIGHT_TOLERANCE:
            yield Problem(
                f"stages.{name}.mixture", stage.mixture, f"the shares sum to {total:.6g}, not 1", "make them sum to 1"
            )


def _rates(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        shape = stage.learning_rate
        if shape.warmup >= stage.tokens:
            yield Problem(
                f"stages.{name}.learning_rate.warmup",
                shape.warmup,
                f"not shorter than the stage's {stage.tokens} tokens",
                "shorten it",
            )
        mark = stage.parent.at
        if mark is not None and stage.parent.stage != BASE and mark > recipe.stages[stage.parent.stage].tokens:
            yield Problem(
                f"stages.{name}.parent.at",
                mark,
                f"beyond the {recipe.stages[stage.parent.stage].tokens} tokens of {stage.parent.stage!r}",
                "lower it, or leave it out to start from the parent's end",
            )
            continue
        if mark is not None and stage.parent.stage == BASE:
            yield Problem(f"stages.{name}.parent.at", mark, "the base model has no token mark", "leave it out")
            continue
        above = recipe.parent_learning_rate(name)
        first = stage.peak_learning_rate(recipe.train)
        if above is not None and shape.warmup == 0 and abs(first - above) > LEARNING_RATE_TOLERANCE * above:
            yield Problem(
                f"stages.{name}.learning_rate.peak",
                first,
                f"the parent {stage.parent.stage!r} ends at {above:.6g}, so the rate would jump",
                f"set it to {above:.6g}, or give the stage a warmup",
            )


def _layouts(recipe: Recipe) -> Iterator[Problem]:
    layouts = {"parallel": recipe.parallel}
    layouts |= {f"stages.{n}.parallel": s.parallel for n, s in recipe.stages.items() if s.parallel is not None}
    for key, layout in layouts.items():
        yield from _layout(recipe, key, layout)


def layout_problems(shape: Architecture, key: str, layout: Parallel) -> Iterator[Problem]:
    """What keeps a layout from holding a model of this shape."""
    tensor = layout.tensor
    for field in ("num_attention_heads", "intermediate_size"):
        if getattr(shape, field) % tensor:
            yield Problem(
                f"{key}.tensor", tensor, f"does not divide {field} {getattr(shape, field)}", "choose a divisor"
            )
    groups = shape.num_key_value_heads
    if groups % tensor and tensor % groups:
        yield Problem(
            f"{key}.tensor",
            tensor,
            f"neither divides num_key_value_heads {groups} nor is a multiple of it",
            "choose one that does",
        )
    chunks = layout.pipeline * (layout.virtual_pipeline or 1)
    if shape.num_hidden_layers % chunks:
        yield Problem(
            f"{key}.pipeline",
            layout.pipeline,
            f"pipeline x virtual_pipeline = {chunks} does not divide num_hidden_layers {shape.num_hidden_layers}",
            "choose a divisor",
        )
    if layout.virtual_pipeline is not None and (layout.pipeline < 2 or layout.virtual_pipeline < 2):
        yield Problem(
            f"{key}.virtual_pipeline",
            layout.virtual_pipeline,
            f"interleaving needs pipeline and virtual_pipeline of 2 or more (pipeline is {layout.pipeline})",
            "leave it out, or raise both",
        )


def _layout(recipe: Recipe, key: str, layout: Parallel) -> Iterator[Problem]:
    train, tensor = recipe.train, layout.tensor
    yield from layout_problems(recipe.model.architecture, key, layout)
    if layout.sequence and tensor == 1:
        yield Problem(f"{key}.sequence", True, "there is one tensor rank", "set it to false, or raise tensor")
    if layout.sequence and train.sequence_length % tensor:
        yield Problem(
            f"{key}.tensor",
            tensor,
            f"does not divide train.sequence_length {train.sequence_length}",
            "choose a divisor",
        )
    if layout.context > 1 and train.sequence_length % (2 * layout.context):
        yield Problem(
            f"{key}.context",
            layout.context,
            f"twice it does not divide train.sequence_length {train.sequence_length}",
            "choose a divisor",
        )


def _batches(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    layouts = {"parallel": recipe.parallel}
    layouts |= {f"stages.{n}.parallel": s.parallel for n, s in recipe.stages.items() if s.parallel is not None}
    for key, layout in layouts.items():
        data = 1 if layout.data == "auto" else layout.data
        yield from batch_problems(recipe, key, layout, data)
    for name in recipe.stages:
        if (samples := recipe.steps(name) * train.global_batch_size) > MOST_SAMPLES:
            yield Problem(
                f"stages.{name}.tokens",
                recipe.stages[name].tokens,
                f"takes {samples:,} samples of {train.sequence_length} tokens; at most {MOST_SAMPLES:,} are indexed",
                "lower it, or raise train.sequence_length",
            )
    if train.micro_batch_size > train.global_batch_size:
        yield Problem(
            "train.micro_batch_size",
            train.micro_batch_size,
            f"larger than train.global_batch_size {train.global_batch_size}",
            "lower it",
        )


def batch_problems(recipe: Recipe, key: str, layout: Parallel, data: int) -> Iterator[Problem]:
    """What keeps micro-batches on `data` data-parallel ranks from making the global batch."""
    train = recipe.train
    if train.global_batch_size % (train.micro_batch_size * data):
        yield Problem(
            "train.global_batch_size",
            train.global_batch_size,
            f"not a multiple of micro_batch_size {train.micro_batch_size} x {data} data-parallel ranks ({key}.data)",
            "change one of the three",
        )
        return
    micro_batches = train.global_batch_size // (train.micro_batch_size * data)
    if layout.virtual_pipeline is not None and micro_batches % layout.pipeline:
        yield Problem(
            f"{key}.virtual_pipeline",
            layout.virtual_pipeline,
            f"interleaving needs micro-batches ({micro_batches}) to be a multiple of pipeline ({layout.pipeline})",
            "change micro_batch_size or leave virtual_pipeline out",
        )
