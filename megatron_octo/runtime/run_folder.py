"""The run folder, through which the parts of a run hand files to each other: its paths, and the resolved recipe."""

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from megatron_octo.errors import RecipeError
from megatron_octo.reading.text import shown_path
from megatron_octo.recipe import Recipe, dump_recipe, load_recipe
from megatron_octo.runtime.files import write_text_atomically
from megatron_octo.runtime.rl_folder import RlFolder

_VERSIONS_OF = ("megatron-octo", "torch", "megatron-core", "transformers", "datatrove", "reasoning-gym")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, `runs/<recipe>/`."""

    root: Path

    @classmethod
    def for_recipe(cls, recipe: Recipe, runs: Path | None = None) -> "RunFolder":
        """The folder of a recipe under `runs` (default: $OCTO_RUNS, else ./runs).

        Raises:
            RecipeError: the folder's name is not UTF-8.
        """
        folder = (runs or Path(os.environ.get("OCTO_RUNS", "runs"))).absolute()
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            raise RecipeError(f"--runs {shown_path(folder)}: not UTF-8; give a folder whose name is UTF-8") from None
        return cls(folder / recipe.name)

    @classmethod
    def containing(cls, checkpoint: Path) -> "RunFolder | None":
        """The run folder of a stage's checkpoint; None for a checkpoint that is elsewhere."""
        parents = checkpoint.absolute().parents
        if len(parents) > 3:
            run = cls(parents[3])
            if run.recipe.is_file() and run.stage(parents[1].name) == parents[1]:
                return run
        return None

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def tokenizer(self) -> Path:
        return self.data / "tokenizer"

    @property
    def tokenizer_file(self) -> Path:
        return self.tokenizer / "tokenizer.json"

    @property
    def heldout(self) -> Path:
        return self.data / "heldout" / "problems.jsonl"

    @property
    def base(self) -> Path:
        """The base model's weights, as a checkpoint of no steps."""
        return self.root / "base"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

    def source(self, name: str) -> Path:
        """Folder of one prepared source."""
        return self.data / name

    def source_manifest(self, name: str) -> Path:
        """Written last. A source is prepared if and only if it exists."""
        return self.source(name) / "manifest.json"

    def stage(self, name: str) -> Path:
        """Folder of one stage."""
        return self.root / "stages" / name

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage) / "checkpoints"

    def lineage(self, stage: str) -> Path:
        return self.stage(stage) / "lineage.json"

    def metrics(self, stage: str) -> Path:
        return self.stage(stage) / "metrics.jsonl"

    def validation(self, stage: str) -> Path:
        return self.stage(stage) / "validation.jsonl"

    def result(self, stage: str) -> Path:
        """Written last. A stage is complete if and only if it exists."""
        return self.stage(stage) / "result.json"

    def running(self, stage: str) -> Path:
        """Which process trains the stage, while it does."""
        return self.stage(stage) / "running.json"

    def stage_lock(self, stage: str) -> Path:
        """Held by the process that trains the stage."""
        return self.stage(stage) / "lock"

    def stage_recipe(self, stage: str) -> Path:
        """The resolved recipe that the stage's ranks were last started with."""
        return self.stage(stage) / "recipe.yaml"

    def index_cache(self, stage: str) -> Path:
        """Megatron's index files, which are made again if they are missing or damaged."""
        return self.stage(stage) / "cache"

    def exported(self, stage: str) -> Path:
        """A stage's last checkpoint as Hugging Face stores models."""
        return self.stage(stage) / "hf"

    def rl(self, stage: str) -> RlFolder:
        """The RL run that starts from a stage's export."""
        return RlFolder(self.root / "rl" / stage)

    def evaluation(self, stage: str) -> Path:
        """Measurements of a stage's model."""
        return self.root / "eval" / stage

    def heldout_result(self, stage: str) -> Path:
        """A stage's accuracy on the held-out problems."""
        return self.evaluation(stage) / "heldout.json"

    def heldout_answers(self, stage: str) -> Path:
        """One line an answer of a stage to a held-out problem."""
        return self.evaluation(stage) / "heldout.jsonl"

    def make(self) -> None:
        """Create the folder with permissions for this user only. An existing folder keeps its permissions."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.root.mkdir(mode=0o700)

    def write_recipe(self, recipe: Recipe, path: Path | None = None) -> None:
        """Store the resolved recipe with the versions in use (default: as the run's recipe)."""
        versions = {}
        for package in _VERSIONS_OF:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                versions[package] = "not installed"
        self.make()
        header = "".join(f"# {package}: {version}\n" for package, version in versions.items())
        write_text_atomically(path or self.recipe, "# Resolved by octo.\n" + header + dump_recipe(recipe))

    def read_recipe(self) -> Recipe:
        """The recipe as it was when the run started.

        Raises:
            RecipeError: there is no recipe.yaml.
        """
        if not self.recipe.is_file():
            raise RecipeError(f"{self.root}: no recipe.yaml, so this is not a run folder; run `octo train` first")
        return load_recipe(str(self.recipe))
