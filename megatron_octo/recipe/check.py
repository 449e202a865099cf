"""Checks that look across sections. What one section decides alone is in its own `problems`."""

from collections.abc import Iterator

from megatron_octo.errors import did_you_mean
from megatron_octo.recipe.base import Problem
from megatron_octo.recipe.model import BYTES_TOKENIZER, Architecture
from megatron_octo.recipe.recipe import Recipe
from megatron_octo.recipe.rl import PromptFile
from megatron_octo.recipe.stage import BASE
from megatron_octo.recipe.train import Parallel

LEARNING_RATE_TOLERANCE = 1e-9
MOST_SAMPLES = 2**31 - 1
"""Samples of a stage: Megatron's index of them takes tens of bytes for each."""
_FP8_MULTIPLE = 16
_FP8_ROWS = 8


def problems_of(recipe: Recipe) -> list[Problem]:
    """Everything that is wrong with a recipe whose fields have values of the right types."""
    inside = list(recipe.all_problems())
    tree = list(_tree_problems(recipe))
    if tree:  # the checks below follow parents, which must form a tree
        return [*inside, *tree]
    return [
        *inside,
        *_sequence_problems(recipe),
        *_mixture_problems(recipe),
        *_parent_problems(recipe),
        *_layout_problems(recipe),
        *_sample_problems(recipe),
        *_rl_problems(recipe),
    ]


def _tree_problems(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        if name == BASE:
            yield Problem(f"stages.{name}", name, f"{BASE!r} is the name of the base model", "choose another name")
            continue
        key, parent = f"stages.{name}.parent", stage.parent.stage
        if parent != BASE and parent not in recipe.stages:
            known = [*recipe.stages, BASE]
            way_out = did_you_mean(parent, known, f"known: {', '.join(sorted(known))}")
            yield Problem(key, parent, "there is no such stage", way_out)
        elif circle := _circle(recipe, name):
            why = f"a stage cannot be its own ancestor ({' -> '.join(circle)})"
            yield Problem(key, parent, why, f"start one from {BASE!r}")


def _circle(recipe: Recipe, name: str) -> list[str] | None:
    """The ancestors of a stage from itself to itself; None where they end elsewhere."""
    seen = [name]
    while seen[-1] != BASE and seen[-1] in recipe.stages:
        seen.append(recipe.stages[seen[-1]].parent.stage)
        if seen[-1] in seen[:-1]:
            return seen if seen[-1] == name else None
    return None


def _sequence_problems(recipe: Recipe) -> Iterator[Problem]:
    length, most = recipe.train.sequence_length, recipe.model.architecture.max_position_embeddings
    if length > most:
        why = f"beyond model.architecture.max_position_embeddings {most}"
        yield Problem("train.sequence_length", length, why, "shorten it")


def _mixture_problems(recipe: Recipe) -> Iterator[Problem]:
    sources = recipe.data.sources
    for name, stage in recipe.stages.items():
        for source, share in stage.mixture.items():
            if source not in sources:
                way_out = did_you_mean(source, sources, f"known: {', '.join(sorted(sources))}")
                why = "there is no such source under data.sources"
                yield Problem(f"stages.{name}.mixture.{source}", share, why, way_out)


def _parent_problems(recipe: Recipe) -> Iterator[Problem]:
    """Marks beyond a parent's end, and learning rates that jump where a stage begins."""
    for name, stage in recipe.stages.items():
        if stage.parent.stage == BASE:
            continue
        parent, mark = recipe.stages[stage.parent.stage], stage.parent.at
        if mark is not None and mark > parent.tokens:
            why = f"beyond the {parent.tokens} tokens of {stage.parent.stage!r}"
            way_out = "lower it, or leave it out to start from the parent's end"
            yield Problem(f"stages.{name}.parent.at", mark, why, way_out)
            continue
        if stage.learning_rate.warmup or parent.learning_rate.warmup >= parent.tokens:  # the latter is reported already
            continue
        first, before = stage.peak_learning_rate(recipe.train), recipe.parent_learning_rate(name)
        assert before is not None
        if abs(first - before) > LEARNING_RATE_TOLERANCE * before:
            yield Problem(
                f"stages.{name}.learning_rate.peak",
                first,
                f"the parent {stage.parent.stage!r} ends at {before:.6g}, so the rate would jump",
                f"set it to {before:.6g}, or give the stage a warmup",
            )


def _layout_problems(recipe: Recipe) -> Iterator[Problem]:
    layouts = {"parallel": recipe.parallel}
    layouts |= {f"stages.{n}.parallel": s.parallel for n, s in recipe.stages.items() if s.parallel is not None}
    micro_batches_fit = not any(recipe.train.problems())
    for key, layout in layouts.items():
        yield from _architecture_problems(recipe.model.architecture, key, layout)
        yield from _split_problems(recipe, key, layout)
        yield from _precision_problems(recipe, key, layout)
        if micro_batches_fit:
            yield from batch_problems(recipe, key, layout, 1 if layout.data == "auto" else layout.data)


def layout_problems(architecture: Architecture, key: str, layout: Parallel) -> Iterator[Problem]:
    """Reasons why a layout cannot hold a model.

    Args:
        key: the layout's own key, which the problems' keys begin with.
    """
    yield from layout.all_problems(key)
    yield from _architecture_problems(architecture, key, layout)


def _architecture_problems(architecture: Architecture, key: str, layout: Parallel) -> Iterator[Problem]:
    tensor, groups = layout.tensor, architecture.num_key_value_heads
    sizes = {field: getattr(architecture, field) for field in ("num_attention_heads", "intermediate_size")}
    if odd := [f"{field} {size}" for field, size in sizes.items() if size % tensor]:
        yield Problem(f"{key}.tensor", tensor, f"does not divide {' and '.join(odd)}", "choose a divisor")
    elif groups % tensor and tensor % groups:
        why = f"neither divides num_key_value_heads {groups} nor is a multiple of it"
        yield Problem(f"{key}.tensor", tensor, why, "choose one that does")
    layers, chunks = architecture.num_hidden_layers, layout.pipeline * (layout.virtual_pipeline or 1)
    if layers % chunks:
        why = f"pipeline x virtual_pipeline = {chunks} does not divide num_hidden_layers {layers}"
        yield Problem(f"{key}.pipeline", layout.pipeline, why, "choose a divisor")


def _split_problems(recipe: Recipe, key: str, layout: Parallel) -> Iterator[Problem]:
    """A sequence that cannot be split over tensor or context ranks."""
    length, context = recipe.train.sequence_length, layout.context
    if context > 1 and length % (2 * context):
        why = f"twice it does not divide train.sequence_length {length}"
        yield Problem(f"{key}.context", context, why, "choose a divisor")
    elif layout.sequence and (length // context) % layout.tensor:
        part = f" / {key}.context {context}" if context > 1 else ""
        why = f"does not divide train.sequence_length {length}{part}"
        yield Problem(f"{key}.tensor", layout.tensor, why, "choose a divisor")


def _precision_problems(recipe: Recipe, key: str, layout: Parallel) -> Iterator[Problem]:
    """Combinations of precision and layout that Transformer Engine has no kernel for, on any machine."""
    train, architecture = recipe.train, recipe.model.architecture
    if train.precision == "fp32" and layout.context > 1:
        why = "context parallelism has no attention kernel for train.precision fp32"
        yield Problem(f"{key}.context", layout.context, why, "set it to 1, or train.precision to bf16")
    bf16_layers = 0 if train.fp8_recipe == "delayed" else 2  # the first and the last one
    if train.precision != "fp8" or architecture.num_hidden_layers <= bf16_layers:
        return
    widths = {
        "hidden_size": architecture.hidden_size,
        "intermediate_size / tensor": architecture.intermediate_size / layout.tensor,
        "num_attention_heads x head_dim / tensor": architecture.num_attention_heads
        * architecture.kv_channels
        / layout.tensor,
    }
    for name, width in widths.items():
        if width == int(width) and width % _FP8_MULTIPLE:  # another width is a problem without FP8, too
            why = f"fp8 needs {name} to be a multiple of {_FP8_MULTIPLE}, and it is {width:g} ({key})"
            yield Problem("train.precision", "fp8", why, "set it to bf16, or change the layout")
    rows = train.micro_batch_size * train.sequence_length
    share = layout.context * (layout.tensor if layout.sequence else 1)
    if rows % share == 0 and rows // share % _FP8_ROWS:
        why = f"fp8 needs tokens of a micro-batch on a rank to be a multiple of {_FP8_ROWS}, and it is {rows // share}"
        yield Problem("train.precision", "fp8", f"{why} ({key})", "set it to bf16, or raise train.micro_batch_size")


def batch_problems(recipe: Recipe, key: str, layout: Parallel, data: int) -> Iterator[Problem]:
    """Reasons why micro-batches on `data` data-parallel ranks cannot make up the global batch.

    Args:
        key: the layout's own key.
    """
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


def _sample_problems(recipe: Recipe) -> Iterator[Problem]:
    for name, stage in recipe.stages.items():
        if (samples := recipe.steps(name) * recipe.train.global_batch_size) > MOST_SAMPLES:
            length = recipe.train.sequence_length
            why = f"takes {samples:,} samples of {length} tokens; at most {MOST_SAMPLES:,} are indexed"
            yield Problem(f"stages.{name}.tokens", stage.tokens, why, "lower it, or raise train.sequence_length")


def _rl_problems(recipe: Recipe) -> Iterator[Problem]:
    """Sequences that vLLM would refuse, and chats without a chat template."""
    rl, most = recipe.rl, recipe.model.architecture.max_position_embeddings
    if rl is None:
        return
    length = rl.max_prompt_tokens + rl.longest_response
    if length > most:
        why = (
            f"with a response of {rl.longest_response} tokens that is {length}, beyond "
            f"model.architecture.max_position_embeddings {most}"
        )
        yield Problem("rl.max_prompt_tokens", rl.max_prompt_tokens, why, "lower it, or rl.response_tokens")
    if recipe.model.tokenizer != BYTES_TOKENIZER:
        return
    for name, prompts in (("prompts", rl.prompts), ("validation", rl.validation)):
        if isinstance(prompts, PromptFile) and prompts.chat:
            why = f"{BYTES_TOKENIZER} has no chat template"
            yield Problem(f"rl.{name}.chat", True, why, "name a field of text and leave chat out")
