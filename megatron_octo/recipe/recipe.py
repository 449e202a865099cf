"""A recipe: a model, its data, and a tree of stages."""

from collections.abc import Sequence

from pydantic import Field

from megatron_octo.errors import RecipeError, did_you_mean
from megatron_octo.recipe.base import Name, Section, Seed
from megatron_octo.recipe.data import DataSection
from megatron_octo.recipe.model import ModelSection
from megatron_octo.recipe.rl import RlSection
from megatron_octo.recipe.schedule import learning_rate_of_step, steps_of
from megatron_octo.recipe.stage import BASE, Stage
from megatron_octo.recipe.train import Parallel, TrainSection


class Recipe(Section):
    """Everything about a run, from one file. Use `load_recipe`, which also checks it."""

    name: Name
    description: str = ""
    seed: Seed = 1234
    model: ModelSection
    data: DataSection
    train: TrainSection
    parallel: Parallel = Parallel()
    stages: dict[Name, Stage] = Field(min_length=1, max_length=200)
    rl: RlSection | None = None

    def layout(self, stage: str) -> Parallel:
        """The parallel layout of a stage."""
        return self.stages[stage].parallel or self.parallel

    def steps(self, stage: str) -> int:
        """Optimizer steps of a stage: its budget over the tokens of a step, rounded up."""
        return steps_of(self.stages[stage].tokens, self.train)

    def parent_step(self, stage: str) -> int:
        """Step of the parent's checkpoint that a stage starts from; 0 where the parent is the base."""
        parent = self.stages[stage].parent
        if parent.stage == BASE:
            return 0
        return steps_of(parent.at, self.train) if parent.at is not None else self.steps(parent.stage)

    def parent_learning_rate(self, stage: str) -> float | None:
        """Learning rate of the parent's last step before a stage starts; None for the base."""
        parent = self.stages[stage].parent
        if parent.stage == BASE:
            return None
        return learning_rate_of_step(self.stages[parent.stage], self.parent_step(stage) - 1, self.train)

    def children(self, stage: str) -> list[str]:
        """Stages that start from this one, in the recipe's order."""
        return [name for name, child in self.stages.items() if child.parent.stage == stage]

    def branch_steps(self, stage: str) -> list[int]:
        """Steps of a stage whose checkpoints must be kept: its end, and where children start."""
        return sorted({self.steps(stage), *(self.parent_step(child) for child in self.children(stage))})

    def ancestry(self, stage: str) -> list[str]:
        """The stage's ancestors from the root down, and the stage itself."""
        chain = [stage]
        while (above := self.stages[chain[0]].parent.stage) != BASE:
            chain.insert(0, above)
        return chain

    def in_order(self) -> list[str]:
        """All stages, each after its parent."""
        return sorted(self.stages, key=lambda name: (len(self.ancestry(name)), list(self.stages).index(name)))

    def chosen(self, stages: Sequence[str]) -> list[str]:
        """The named stages, each after its parent; all stages where none is named.

        Raises:
            RecipeError: there is no stage of that name.
        """
        for stage in stages:
            if stage not in self.stages:
                hint = did_you_mean(stage, self.stages, f"stages: {', '.join(self.stages)}")
                raise RecipeError(f"{self.name} has no stage {stage!r}; {hint}")
        return [name for name in self.in_order() if not stages or name in stages]

    def lineage_tokens(self, stage: str) -> int:
        """Tokens that the stage's ancestors consumed before its first step, in whole steps."""
        total, name = 0, stage
        while self.stages[name].parent.stage != BASE:
            total += self.parent_step(name) * self.train.tokens_per_step
            name = self.stages[name].parent.stage
        return total
