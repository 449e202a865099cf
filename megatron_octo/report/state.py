"""Where each stage of a run stands, read off the run folder."""

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

ELSEWHERE_SECONDS = 600.0
"""A run on another host counts as alive while its metrics are no older than this."""


@dataclass(frozen=True)
class StageState:
    """One stage of the tree."""

    name: str
    parent: str
    state: State
    """`ready`: the checkpoint it starts from is there. `waiting`: it is not yet."""
    step: int
    """Updates done, of `steps`."""
    steps: int
    tokens: int
    """Tokens consumed within the stage."""
    last_loss: float | None
    last_checkpoint_step: int | None
    """The newest complete checkpoint: where an interrupted stage goes on."""
    missing_sources: tuple[str, ...]
    """Sources of its mixture that are not prepared yet."""

    @property
    def data_ready(self) -> bool:
        """Whether every source of the mixture is prepared."""
        return not self.missing_sources


def stage_states(recipe: Recipe, run: RunFolder) -> list[StageState]:
    """The state of every stage, each after its parent."""
    return [_state_of(recipe, run, name) for name in recipe.in_order()]


def is_prepared(run: RunFolder, source: str) -> bool:
    """Whether a source is prepared: its manifest is written last."""
    return (run.source(source) / "manifest.json").is_file()


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
        state = "ready" if _parent_is_there(recipe, run, name) else "waiting"
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


def _parent_is_there(recipe: Recipe, run: RunFolder, name: str) -> bool:
    parent = recipe.stages[name].parent.stage
    return parent == BASE or recipe.parent_step(name) in complete_steps(run.checkpoints(parent))


def _is_running(run: RunFolder, name: str) -> bool:
    """Whether the process that says it trains the stage is alive."""
    claim = read_claim(run.running(name))
    if claim is None:
        return False
    if claim.get("host") == socket.gethostname():
        return is_alive(claim)
    try:
        return time.time() - run.metrics(name).stat().st_mtime < ELSEWHERE_SECONDS
    except FileNotFoundError:
        return False
