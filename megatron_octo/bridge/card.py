"""The model card of an export: what it is, and the whole of its lineage."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_octo.bridge.companions import run_of
from megatron_octo.bridge.config import DTYPE_NAMES
from megatron_octo.recipe import Architecture, Recipe
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.runtime.checkpoints import MANIFEST, CheckpointManifest, read_checkpoint_manifest
from megatron_octo.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Lineage:
    """Where a checkpoint comes from, as far as it says."""

    checkpoint: str
    manifest: CheckpointManifest | None
    recipe: Recipe | None
    sources: dict[str, dict[str, Any]]
    """Data manifests, by source, of all that the lineage was trained on."""


def lineage_of(checkpoint: Path) -> Lineage:
    """Read what stands in the checkpoint and in the run folder around it."""
    manifest = read_checkpoint_manifest(checkpoint) if (checkpoint / MANIFEST).is_file() else None
    run = run_of(checkpoint)
    if run is None or manifest is None:
        return Lineage(checkpoint.name, manifest, None, {})
    recipe = run.read_recipe()
    stages = recipe.ancestry(manifest.stage) if manifest.stage in recipe.stages else []
    names = dict.fromkeys(name for stage in stages for name in recipe.stages[stage].mixture)
    return Lineage(checkpoint.name, manifest, recipe, {name: _data(run, name) for name in names})


def _data(run: RunFolder, source: str) -> dict[str, Any]:
    path = run.source(source) / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def model_card(shape: Architecture, dtype: torch.dtype, lineage: Lineage) -> str:
    """The text of README.md."""
    manifest, recipe = lineage.manifest, lineage.recipe
    name = f"{manifest.recipe}/{manifest.stage}" if manifest is not None and manifest.recipe else lineage.checkpoint
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if recipe is not None and recipe.model.base is not None and recipe.model.initialize == "base":
        lines.append(f"base_model: {recipe.model.base}")
    what = (
        f"A {shape.model_type} model of {shape.num_parameters():,} parameters in {DTYPE_NAMES[dtype]}, exported from a "
        "Megatron-Core checkpoint by megatron_octo. Every tensor was read back and found equal, bit for bit."
    )
    lines += [
        "---",
        f"# {name}",
        "",
        what,
        "",
        "## Lineage",
        "",
    ]
    if manifest is None:
        lines += [f"Checkpoint `{lineage.checkpoint}`, saved by another program: it does not say where it comes from."]
    elif recipe is None:
        lines += [f"- checkpoint `{lineage.checkpoint}`: {_origin(manifest)}"]
    else:
        lines += _stages(recipe, manifest)
        lines += [
            "",
            "## Data",
            "",
            "| source | from | revision | licence | tokens prepared |",
            "|---|---|---|---|---|",
        ]
        lines += [_source_row(source, data) for source, data in lineage.sources.items()]
        lines += ["", "The licences of the data and of the base bind what is made from them."]
    if manifest is not None:
        versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
        lines += ["", f"Saved with {versions}."]
    return "\n".join(lines) + "\n"


def _stages(recipe: Recipe, manifest: CheckpointManifest) -> list[str]:
    model = recipe.model
    start = f"`{model.base}`" if model.initialize == "base" else "random weights"
    lines = [f"Recipe `{recipe.name}`, seed {recipe.seed}. Begins from {start}.", ""]
    lines += ["| stage | parent | tokens | learning rate | mixture |", "|---|---|---|---|---|"]
    ancestry = recipe.ancestry(manifest.stage) if manifest.stage in recipe.stages else []
    for above, stage in zip(ancestry, [*ancestry[1:], None], strict=True):
        steps = recipe.parent_step(stage) if stage is not None else manifest.step
        shape = recipe.stages[above].learning_rate
        peak = shape.peak or recipe.train.learning_rate
        rate = f"{peak:g}" if shape.shape == "constant" else f"{peak:g} to {peak * shape.floor:g}, {shape.shape}"
        mixture = ", ".join(f"{name} {weight:g}" for name, weight in recipe.stages[above].mixture.items())
        tokens = format_tokens(steps * recipe.train.tokens_per_step)
        lines.append(f"| {above} | {recipe.stages[above].parent.stage} | {tokens} | {rate} | {mixture} |")
    lines += ["", f"{manifest.lineage_tokens:,} tokens in all, at step {manifest.step} of `{manifest.stage}`."]
    return lines


def _source_row(source: str, data: dict[str, Any]) -> str:
    if not data:
        return f"| {source} | not in the run folder any more | | | |"
    origin = data["origin"]
    shown = origin.get("dataset") or origin.get("corpus") or ", ".join(Path(p).name for p in origin.get("paths", []))
    tokens = format_tokens(data["train"]["tokens"])
    return f"| {source} | {data['kind']}: {shown} | {data['revision'] or '-'} | {data['licence']} | {tokens} |"


def _origin(manifest: CheckpointManifest) -> str:
    if manifest.origin:
        return "imported from " + ", ".join(f"{key} {value}" for key, value in manifest.origin.items() if value)
    return f"step {manifest.step} of {manifest.stage}, {manifest.lineage_tokens:,} tokens"
