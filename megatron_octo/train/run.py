"""`octo train`: the stages that are not complete, each after its parent, each on ranks of its own."""

from collections.abc import Sequence

from megatron_octo.bridge.base import import_base
from megatron_octo.recipe import BASE, Recipe
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.runtime.launch import ranks_on_this_machine, run_module_as_ranks
from megatron_octo.runtime.rank import Rank, is_rank_already
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.lineage import complete_result
from megatron_octo.train.plan import StageOptions, StagePlan, plan_stage

WORKER = "megatron_octo.train.worker"


def train_stages(
    recipe: Recipe,
    run: RunFolder,
    stages: Sequence[str] = (),
    *,
    accept_changes: bool = False,
    stop_after_step: int | None = None,
) -> int:
    """Train the named stages (default: all) that are not complete. Returns an exit status; 0 when all are.

    Raises:
        OctoError: bad input, before any stage is trained.
    """
    chosen = recipe.chosen(stages)
    options = StageOptions(accept_changes, stop_after_step)
    if is_rank_already():
        return _train_as_rank(recipe, run, chosen, options)
    plans = _begin(recipe, run, chosen, options)
    for stage, plan in plans.items():
        if plan is None:  # its parent is complete by now
            plan = plan_stage(recipe, run, stage, options, _world_size(recipe, stage))
        if plan.needs_import:
            import_base(recipe, run, plan.layout)
        if status := _train_on_ranks(plan, options):
            return status
        if not run.result(stage).is_file():
            return 0  # asked to stop: the rest is for the next call
    return 0


def _begin(recipe: Recipe, run: RunFolder, chosen: Sequence[str], options: StageOptions) -> dict[str, StagePlan | None]:
    """The stages to train, with their plans; None where the parent is trained in this very call.

    Complete stages are named and left out. The resolved recipe is written once nothing was refused.
    """
    todo = []
    for stage in chosen:
        result = complete_result(recipe, run, stage)
        if result is None:
            todo.append(stage)
            continue
        tokens, loss = format_tokens(result["tokens"]), result["last_loss"]
        print(f"{stage}: already trained ({tokens} tokens, loss {loss:.4f}); skipped", flush=True)
    plans: dict[str, StagePlan | None] = {}
    for stage in todo:
        parent = recipe.stages[stage].parent.stage
        waits = parent != BASE and parent in plans
        plans[stage] = None if waits else plan_stage(recipe, run, stage, options, _world_size(recipe, stage))
    if plans:
        run.write_recipe(recipe)
    return plans


def _world_size(recipe: Recipe, stage: str) -> int:
    return Rank.from_environment().world_size if is_rank_already() else ranks_on_this_machine(recipe.layout(stage))


def _train_on_ranks(plan: StagePlan, options: StageOptions) -> int:
    """Start ranks on this machine and wait for them. Returns the exit status."""
    # a file of this stage's own: another stage of the recipe may be started meanwhile with other overrides
    plan.run.write_recipe(plan.recipe, plan.run.stage_recipe(plan.name))
    arguments = ["--folder", str(plan.run.root), "--stage", plan.name]
    if options.accept_changes:
        arguments.append("--accept-changes")
    if options.stop_after_step is not None:
        arguments += ["--stop-after-step", str(options.stop_after_step)]
    return run_module_as_ranks(WORKER, arguments, ranks_on_this_machine(plan.layout))


def _train_as_rank(recipe: Recipe, run: RunFolder, chosen: Sequence[str], options: StageOptions) -> int:
    """Train on the ranks that torchrun or SLURM started; this process is one of them."""
    from megatron_octo.runtime.groups import from_first_rank
    from megatron_octo.train.stage import join_ranks, train_stage

    todo: list[str] | None = None
    for stage in chosen:
        if todo is not None and stage not in todo:
            continue
        with join_ranks(recipe, stage) as place:
            if todo is None:
                todo = from_first_rank(lambda: list(_begin(recipe, run, chosen, options)))
            if stage in todo and not train_stage(place, recipe, run, stage, options):
                return 0  # asked to stop: the rest is for the next call
    return 0
