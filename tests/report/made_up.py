"""Run folders made up for tests: what a trainer would have left, without training."""

import json
import math
import random
from pathlib import Path
from typing import Any

from megatron_octo.recipe import Recipe
from megatron_octo.recipe.schedule import learning_rate_of_step
from megatron_octo.runtime.run_folder import RunFolder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step_row(recipe: Recipe, stage: str, step: int, loss: float) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    consumed = step * recipe.train.tokens_per_step
    return {
        "step": step,
        "stage_tokens": consumed,
        "tokens": recipe.lineage_tokens(stage) + consumed,
        "loss": loss,
        "lr": learning_rate_of_step(recipe.stages[stage], step - 1, recipe.train),
        "grad_norm": 1.0,
        "tokens_per_second": 1.0e4,
        "mfu": None,
        "source_tokens": {},
        "seconds": 0.4,
    }


def train(recipe: Recipe, run: RunFolder, stage: str, start: float, end: float, steps: int | None = None) -> None:
    """Metrics and validation of a stage whose loss falls from `start` to `end`, up to `steps`."""
    chance = random.Random(stage)
    total = recipe.steps(stage)

    def loss(step: int) -> float:
        return end + (start - end) * math.exp(-5.0 * step / total)

    last = total if steps is None else steps
    # a stage of 47,684 steps is written thinned out, as a picture needs no more
    every = max(1, total // 3000)
    marks = sorted({*range(1, last + 1, every), last} - {0})
    write_lines(run.metrics(stage), [step_row(recipe, stage, s, loss(s) + chance.gauss(0, 0.06)) for s in marks])
    points = list(range(total // 6, last + 1, total // 6))
    write_lines(
        run.validation(stage),
        [
            {
                "step": s,
                "stage_tokens": s * recipe.train.tokens_per_step,
                "tokens": recipe.lineage_tokens(stage) + s * recipe.train.tokens_per_step,
                "source": source,
                "loss": loss(s) + 0.03,
            }
            for s in points
            for source in recipe.stages[stage].mixture
        ],
    )


def finish(
    recipe: Recipe, run: RunFolder, stage: str, first_loss: float = 5.5, last_loss: float = 1.2
) -> dict[str, Any]:
    """result.json of a stage that is done."""
    result = {
        "tokens": recipe.lineage_tokens(stage) + recipe.steps(stage) * recipe.train.tokens_per_step,
        "steps": recipe.steps(stage),
        "first_lr": 2e-3,
        "last_lr": 2e-4,
        "first_loss": first_loss,
        "last_loss": last_loss,
        "validation_loss": dict.fromkeys(recipe.stages[stage].mixture, last_loss + 0.03),
        "parent": recipe.stages[stage].parent.stage,
        "parent_validation_loss": None,
        "wall_seconds": 312.5,
        "tokens_per_second": 9_600.0,
    }
    run.result(stage).parent.mkdir(parents=True, exist_ok=True)
    run.result(stage).write_text(json.dumps(result))
    return result


def checkpoint(run: RunFolder, stage: str, step: int, complete: bool = True) -> None:
    """A checkpoint's folder, with or without the manifest that makes it complete."""
    folder = run.checkpoints(stage) / f"step-{step:07d}"
    folder.mkdir(parents=True)
    if complete:
        (folder / "manifest.json").write_text("{}")
