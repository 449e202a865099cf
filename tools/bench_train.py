"""Benchmark of the training loop: tokens a second of three loops, side by side in one run.

The loops take turns to train the same architecture on the same random tokens with the same optimizer:
  octo      megatron_octo.train.loop: Megatron-Core, with the checks, metrics and display of `octo train`
  megatron  bare Megatron-Core calls: the forward-backward schedule and the optimizer step
  plain     a PyTorch loop over transformers.LlamaForCausalLM and torch.optim.AdamW

    python tools/bench_train.py [--recipe tiny] [-s key=value] [--rounds 12] [--json FILE]
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from megatron_octo.recipe import Recipe, load_recipe
from megatron_octo.runtime.quiet import silence_library_warnings

silence_library_warnings()


class RandomSamples:
    """Random token sequences with a recipe's length and vocabulary."""

    def __init__(self, recipe: Recipe, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        size = (count, recipe.train.sequence_length + 1)
        self.text = torch.randint(recipe.model.architecture.vocab_size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> Mapping[str, torch.Tensor]:
        text = self.text[index % len(self.text)]
        return {"tokens": text[:-1], "labels": text[1:]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each loop in a round")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    overrides = ["parallel={tensor: 1, pipeline: 1}", "train.validation.every_steps=0", *options.set]
    recipe = load_recipe(options.recipe, overrides)
    loops = build_loops(recipe, (options.rounds + 1) * options.steps)
    for run in loops.values():  # warm up
        run(options.steps)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    # Rounds cycle through all orders of the loops, because the loop that ran before affects the caches.
    orders = itertools.cycle(itertools.permutations(loops))
    for _, order in zip(range(options.rounds), orders, strict=False):
        for name in order:
            start = time.perf_counter()
            loops[name](options.steps)
            seconds[name].append((time.perf_counter() - start) / options.steps)
    report(recipe, seconds, options.json)


def build_loops(recipe: Recipe, steps: int) -> dict[str, Callable[[int], None]]:
    """Build the three loops. Each takes the number of steps to run."""
    from megatron_octo.runtime.device import setup_device
    from megatron_octo.runtime.groups import start_process_groups
    from megatron_octo.runtime.rank import Rank

    device = setup_device(0)
    start_process_groups(Rank(0, 0, 1), recipe.parallel, device, recipe.seed)
    samples = RandomSamples(recipe, recipe.train.global_batch_size * 8)
    return {
        "octo": octo_loop(recipe, samples, steps, device),
        "megatron": bare_megatron_loop(recipe, samples, device),
        "plain": plain_loop(recipe, samples, device),
    }


def build_megatron_model(recipe: Recipe, device: torch.device):
    """Build a model and its optimizer as `octo train` does."""
    from megatron_octo.model.build import build_model
    from megatron_octo.model.initialize import initialize_random
    from megatron_octo.train.optimizer import build_optimizer, wrap_data_parallel

    chunks = build_model(recipe.model.architecture, recipe.train, recipe.parallel, device)
    initialize_random(chunks, recipe.seed)
    model = wrap_data_parallel(chunks, recipe.train)
    return model, build_optimizer(model, recipe.train)


def octo_loop(recipe: Recipe, samples: RandomSamples, steps: int, device: torch.device) -> Callable[[int], None]:
    """The project's loop. It writes metrics to a temporary folder and discards the live line."""
    import io
    import tempfile

    from megatron_octo.data.datasets import Mixture
    from megatron_octo.data.mixture import TokenIds
    from megatron_octo.runtime.hang_watch import HangWatch
    from megatron_octo.runtime.run_folder import RunFolder
    from megatron_octo.train.display import Display
    from megatron_octo.train.loop import Progress, Trainer, train_steps
    from megatron_octo.train.metrics import MetricsWriter
    from megatron_octo.train.plan import StagePlan
    from megatron_octo.train.reporter import FirstRankReporter
    from megatron_octo.train.start import RandomWeights
    from megatron_octo.train.throughput import peak_flops

    stage = recipe.in_order()[0]
    budget = steps * recipe.train.tokens_per_step
    stages = {stage: recipe.stages[stage].model_copy(update={"tokens": budget})}
    recipe = recipe.model_copy(update={"stages": stages})
    model, optimizer = build_megatron_model(recipe, device)
    run = RunFolder(Path(tempfile.mkdtemp()))
    plan = StagePlan(
        recipe=recipe,
        run=run,
        name=stage,
        training=(),
        validation=(),
        tokens=TokenIds(recipe.model.architecture.vocab_size, 0),
        fingerprint={},
        start=RandomWeights(),
        accepted_changes=(),
        stop_after_step=None,
    )
    metrics = MetricsWriter(
        run.metrics(stage), run.validation(stage), recipe.train.logging, name="bench", resume_step=0
    )
    names = tuple(recipe.stages[stage].mixture)
    trainer = Trainer(
        plan=plan,
        model=model,
        optimizer=optimizer,
        mixture=Mixture(samples, names, np.arange(steps * recipe.train.global_batch_size) % len(names)),
        device=device,
        peak_flops=peak_flops(device),
        reporter=FirstRankReporter(plan, Display(stage, steps, 0, Console(file=io.StringIO())), metrics),
        hang_watch=HangWatch(recipe.train.guards, 0),
        stop_requested=lambda: False,
        validate=lambda progress: {},
        save=lambda progress: None,
        poll_save=lambda: None,
    )
    progress = Progress()

    def train(count: int) -> None:
        from dataclasses import replace

        stop_after_step = progress.step + count
        train_steps(replace(trainer, plan=replace(plan, stop_after_step=stop_after_step)), progress)

    return train


def bare_megatron_loop(recipe: Recipe, samples: RandomSamples, device: torch.device) -> Callable[[int], None]:
    """Megatron-Core's own calls, without the project's loop."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_octo.train.batches import batch_stream, micro_batches
    from megatron_octo.train.forward import forward_step

    train = recipe.train
    model, optimizer = build_megatron_model(recipe, device)
    model[0].config.finalize_model_grads_func = finalize_model_grads
    batches = batch_stream(samples, train, device, first_step=0, steps=10**9)
    forward_backward = get_forward_backward_func()

    def run(count: int) -> None:
        for _ in range(count):
            model[0].zero_grad_buffer()
            optimizer.zero_grad()
            forward_backward(
                forward_step_func=forward_step,
                data_iterator=batches,
                model=model,
                num_microbatches=micro_batches(train),
                seq_length=train.sequence_length,
                micro_batch_size=train.micro_batch_size,
                forward_only=False,
            )
            optimizer.step()

    return run


def plain_loop(recipe: Recipe, samples: RandomSamples, device: torch.device) -> Callable[[int], None]:
    """transformers' Llama and torch's AdamW, with the same micro-batches, clipping and precision."""
    from transformers import LlamaConfig, LlamaForCausalLM

    train, settings = recipe.train, recipe.train.optimizer
    fields = recipe.model.architecture.model_dump(exclude={"model_type", "rope_scaling"}, exclude_none=True)
    dtype = torch.float32 if train.precision == "fp32" else torch.bfloat16
    model = LlamaForCausalLM(LlamaConfig(**fields, attn_implementation="sdpa")).to(device, dtype)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=train.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    from megatron_octo.train.batches import batch_stream, micro_batches

    batches = batch_stream(samples, train, device, first_step=0, steps=10**9)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            for _ in range(micro_batches(train)):
                batch = next(batches)
                # The labels are already shifted; the model would shift them again, so the loss is computed here.
                logits = model(input_ids=batch["tokens"], use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten())
                (loss / micro_batches(train)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
            optimizer.step()

    return run


def report(recipe: Recipe, seconds: dict[str, list[float]], path: Path | None) -> None:
    """Print the table, and write JSON if a path is given."""
    tokens = recipe.train.tokens_per_step
    median = {name: statistics.median(values) for name, values in seconds.items()}
    # Ratios are taken within each round, because a machine's speed drifts over minutes.
    against_plain = statistics.median(p / o for p, o in zip(seconds["plain"], seconds["octo"], strict=True))
    overhead = statistics.median(o / m for o, m in zip(seconds["octo"], seconds["megatron"], strict=True)) - 1
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    table = Table(title=f"{recipe.name}, {device}, {recipe.train.precision}, {tokens} tokens a step")
    for column in ("loop", "ms a step", "tokens/s"):
        table.add_column(column, justify="right")
    for name, value in median.items():
        table.add_row(name, f"{1000 * value:.1f}", f"{tokens / value:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"octo / plain: {against_plain:.3f} (goal 0.9 or better)")
    console.print(f"octo over bare Megatron-Core: {100 * overhead:+.1f}% (goal 3% or less)")
    if path is not None:
        result = {
            "recipe": recipe.name,
            "device": device,
            "median_seconds": median,
            "tokens_per_second": {name: tokens / value for name, value in median.items()},
            "octo_over_plain": against_plain,
            "overhead_over_megatron": overhead,
        }
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
