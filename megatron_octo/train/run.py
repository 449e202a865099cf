"""`octo train`: the stages that are not done, each after its parent, each on ranks of its own."""

from collections.abc import Sequence

from megatron_octo.bridge.base import import_base
from megatron_octo.recipe import BASE, Recipe
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.runtime.launch import ranks_on_this_machine, run_module_as_ranks
from megatron_octo.runtime.rank import Rank, is_rank_already
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.done import finished_result
from megatron_octo.train.origin import find_origin
from megatron_octo.train.preflight import check_before_launch

WORKER = "megatron_octo.train.worker"


def train_stages(
    recipe: Recipe,
    run: RunFolder,
    stages: Sequence[str] = (),
    *,
    accept_changes: bool = False,
    stop_after_step: int | None = None,
) -> int:
    """Train the named stages (default: all) that are not done. Returns an exit status; 0 when all are.

    Raises:
        OctoError: bad input, before any rank is started.
    """
    chosen = recipe.chosen(stages)
    first = Rank.from_environment().is_first
    todo = []
    for stage in chosen:
        result = finished_result(recipe, run, stage)
        if result is None:
            todo.append(stage)
        elif first:
            print(
                f"{stage}: already trained ({format_tokens(result['tokens'])} tokens, loss {result['last_loss']:.4f}); "
                "skipped",
                flush=True,
            )
    for stage in todo:
        parent = recipe.stages[stage].parent.stage
        if parent != BASE and parent in todo and todo.index(parent) < todo.index(stage):
            continue  # its parent's checkpoint comes to be in this very call
        check_before_launch(recipe, run, stage, accept_changes=accept_changes)
    if todo and first:
        run.write_recipe(recipe)
    for stage in todo:
        check_before_launch(recipe, run, stage, accept_changes=accept_changes)
        if is_rank_already():
            if not _train_as_rank(recipe, run, stage, accept_changes, stop_after_step):
                return 0
            continue
        if find_origin(recipe, run, stage).kind == "base":
            import_base(recipe, run, recipe.layout(stage))
        if status := _train_on_ranks(recipe, run, stage, accept_changes, stop_after_step):
            return status
        if not run.result(stage).is_file():
            return 0  # asked to stop: what is left is for the next call
    return 0


def _train_as_rank(
    recipe: Recipe, run: RunFolder, stage: str, accept_changes: bool, stop_after_step: int | None
) -> bool:
    from megatron_octo.train.stage import StageOptions, train_stage

    return train_stage(recipe, run, stage, StageOptions(accept_changes, stop_after_step))


def _train_on_ranks(
    recipe: Recipe, run: RunFolder, stage: str, accept_changes: bool, stop_after_step: int | None
) -> int:
    # a file of this stage's own: another stage of the recipe may be started meanwhile with other overrides
    run.write_recipe(recipe, run.stage_recipe(stage))
    arguments = ["--folder", str(run.root), "--stage", stage]
    if accept_changes:
        arguments.append("--accept-changes")
    if stop_after_step is not None:
        arguments += ["--stop-after-step", str(stop_after_step)]
    return run_module_as_ranks(WORKER, arguments, ranks_on_this_machine(recipe.layout(stage)))
