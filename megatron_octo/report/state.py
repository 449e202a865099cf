"""The state of each stage of a run, read from the run folder."""

import math
import socket
import time
from dataclasses import dataclass
from typing import Literal

from megatron_octo.recipe import BASE, Recipe
from megatron_octo.report.rows import read_steps
from megatron_octo.runtime.checkpoints import complete_steps
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.runtime.stage_lock import is_alive, read_claim

State = Literal["done", "running", "interrupted", "ready", "waiting"]

_OTHER_HOST_SECONDS = 600.0
"""A stage that another host trains counts as running while its metrics are no older than this."""


@dataclass(frozen=True)
class StageState:
    """One stage of the tree."""

    name: str
    parent: str
    state: State
    """`ready`: the checkpoint it starts from exists. `waiting`: it does not exist yet."""
    step: int
    """Optimizer steps taken."""
    steps: int
    """Optimizer steps of the whole stage."""
    tokens: int
    """Tokens consumed within the stage."""
    last_loss: float | None
    last_checkpoint_step: int | None
    """The newest complete checkpoint, from which an interrupted stage resumes."""
    missing_sources: tuple[str, ...]
    """Sources of its mixture that are not prepared yet."""


def stage_states(recipe: Recipe, run: RunFolder) -> list[StageState]:
    """The states of all stages, each after its parent's."""
    return [_state_of(recipe, run, name) for name in recipe.in_order()]


def is_prepared(run: RunFolder, source: str) -> bool:
    """Whether a source is prepared. Its manifest is written last."""
    return run.source_manifest(source).is_file()


def _state_of(recipe: Recipe, run: RunFolder, name: str) -> StageState:
    stage = recipe.stages[name]
    rows = read_steps(run.metrics(name))
    checkpoints = complete_steps(run.checkpoints(name))
    state: State
    if run.result(name).is_file():
        state = "done"
    elif _is_running(run, name):
        state = "running"
    elif rows or checkpoints:
        state = "interrupted"
    else:
        state = "ready" if _parent_exists(recipe, run, name) else "waiting"
    step = rows[-1].step if rows else 0
    return StageState(
        name=name,
        parent=stage.parent.stage,
        state=state,
        step=step,
        steps=recipe.steps(name),
        tokens=rows[-1].stage_tokens if rows else 0,
        last_loss=rows[-1].loss if rows and math.isfinite(rows[-1].loss) else None,
        last_checkpoint_step=checkpoints[-1] if checkpoints else None,
        missing_sources=tuple(source for source in stage.mixture if not is_prepared(run, source)),
    )


def _parent_exists(recipe: Recipe, run: RunFolder, name: str) -> bool:
    parent = recipe.stages[name].parent.stage
    return parent == BASE or recipe.parent_step(name) in complete_steps(run.checkpoints(parent))


def _is_running(run: RunFolder, name: str) -> bool:
    """Whether the process that claims the stage is alive."""
    claim = read_claim(run.running(name))
    if claim is None:
        return False
    if claim.get("host") == socket.gethostname():
        return is_alive(claim)
    try:
        return time.time() - run.metrics(name).stat().st_mtime < _OTHER_HOST_SECONDS
    except FileNotFoundError:
        return False
