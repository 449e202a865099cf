"""`octo train`: the stages that are not complete, each after its parent, each on ranks of its own."""

from collections.abc import Sequence

from megatron_octo.bridge.base import import_base
from megatron_octo.recipe import Recipe
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
    for stage, plan in _begin(recipe, run, chosen, options):
        if plan is None:
            plan = plan_stage(recipe, run, stage, options, _world_size(recipe, stage))
        if plan.needs_import:
            import_base(recipe, run, plan.layout)
        if status := _train_on_ranks(plan, options):
            return status
        if not run.result(stage).is_file():
            return 0  # asked to stop: the rest is for the next call
    return 0


def _begin(
    recipe: Recipe, run: RunFolder, chosen: Sequence[str], options: StageOptions
) -> list[tuple[str, StagePlan | None]]:
    """The stages to train. The first has its plan; the others are planned when their turn comes, perhaps weeks later.

    Complete stages are named and left out. Stages that can be planned already are, so that a refusal comes now. The
    resolved recipe is written once nothing was refused.
    """
    todo = []
    for stage in chosen:
        result = complete_result(recipe, run, stage)
        if result is None:
            todo.append(stage)
            continue
        tokens, loss = format_tokens(result["tokens"]), result["last_loss"]
        print(f"{stage}: already trained ({tokens} tokens, loss {loss:.4f}); skipped", flush=True)
    plans: list[StagePlan] = []
    for number, stage in enumerate(todo):
        if recipe.stages[stage].parent.stage not in todo[:number]:  # else its parent is trained in this very call
            plans.append(plan_stage(recipe, run, stage, options, _world_size(recipe, stage)))
    if todo:
        run.write_recipe(recipe)
    return [(stage, plans[0] if number == 0 else None) for number, stage in enumerate(todo)]


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
    from megatron_octo.train.stage import joined_world, train_stage

    with joined_world(recipe) as context:
        on_wait = context.hang_watch.other_work
        todo = from_first_rank(lambda: [stage for stage, _ in _begin(recipe, run, chosen, options)], on_wait)
        for stage in todo:
            if not train_stage(context, recipe, run, stage, options):
                return 0  # asked to stop: the rest is for the next call
    return 0
