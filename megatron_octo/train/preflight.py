"""What can be refused before a rank is started."""

import importlib.util

import torch

from megatron_octo.bridge.base import check_base
from megatron_octo.errors import ModelError, RecipeError, RuntimeSetupError
from megatron_octo.recipe import Parallel, Recipe
from megatron_octo.recipe.check import batch_problems
from megatron_octo.runtime.groups import data_parallel_size
from megatron_octo.runtime.launch import ranks_on_this_machine
from megatron_octo.runtime.rank import Rank, is_rank_already
from megatron_octo.runtime.run_folder import RunFolder
from megatron_octo.train.agreement import check_agreement
from megatron_octo.train.corpus import stage_sources, token_ids
from megatron_octo.train.order import data_order
from megatron_octo.train.origin import find_origin


def check_before_launch(recipe: Recipe, run: RunFolder, stage: str, *, accept_changes: bool) -> None:
    """Check layout, batch, data and the checkpoint to start from, as far as one process can see.

    Raises:
        OctoError: what is wrong, with the way out; nothing has been started or written.
    """
    layout = recipe.layout(stage)
    world = Rank.from_environment().world_size if is_rank_already() else ranks_on_this_machine(layout)
    data = data_parallel_size(layout, world)
    if problems := list(batch_problems(recipe, "parallel", layout, data)):
        raise RecipeError("; ".join(str(problem) for problem in problems))
    _check_hardware(recipe, layout)
    stage_sources(recipe, run, stage, "validation")
    token_ids(recipe, run)
    origin = find_origin(recipe, run, stage)
    if origin.kind == "base" and origin.folder is None:
        check_base(recipe, run)
    order = data_order(recipe, stage_sources(recipe, run, stage, "train"), stage)
    check_agreement(recipe, run, stage, origin, order, accept_changes=accept_changes)


def _check_hardware(recipe: Recipe, layout: Parallel) -> None:
    from megatron_octo.model.rope import check_expressible

    check_expressible(recipe.model.architecture)
    has_cuda = torch.cuda.is_available()
    if recipe.train.precision == "fp8" and not has_cuda:
        raise ModelError("train.precision = fp8: FP8 needs a Hopper GPU or newer; set train.precision=bf16")
    project = recipe.train.logging.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise RuntimeSetupError(
            f"train.logging.wandb_project = {project!r}, but wandb is not installed; "
            "pip install wandb, or set the key to null"
        )
    if layout.context > 1 and (not has_cuda or importlib.util.find_spec("transformer_engine") is None):
        raise RuntimeSetupError(
            f"parallel.context = {layout.context}: context parallelism needs Transformer Engine on a GPU; set it to 1"
        )
