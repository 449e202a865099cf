"""Recipes: a typed schema, a loader, and the shipped recipes."""

from megatron_octo.recipe.load import build_recipe, dump_recipe, load_recipe, shipped_recipes
from megatron_octo.recipe.model import Architecture
from megatron_octo.recipe.recipe import Recipe
from megatron_octo.recipe.stage import BASE, Stage
from megatron_octo.recipe.train import Parallel

__all__ = [
    "BASE",
    "Architecture",
    "Parallel",
    "Recipe",
    "Stage",
    "build_recipe",
    "dump_recipe",
    "load_recipe",
    "shipped_recipes",
]
