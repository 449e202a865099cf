"""The model card of an export: the model and its complete lineage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from megatron_octo.bridge.config import DTYPE_NAMES
from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import read_record
from megatron_octo.recipe import BASE, Architecture, Stage
from megatron_octo.recipe.tokens import format_tokens
from megatron_octo.runtime.checkpoints import MANIFEST, CheckpointManifest, read_checkpoint_manifest
from megatron_octo.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Lineage:
    """Where a checkpoint comes from, as far as that is recorded."""

    checkpoint: str
    manifest: CheckpointManifest | None
    settings: "Settings | None"
    """`settings` of the stage's lineage.json: what it and its ancestors were really trained with."""
    sources: "dict[str, Source | None]"
    """Data manifests of all sources that the lineage was trained on; None for those that are gone."""


class _Read(BaseModel):
    """A part of a file in the run folder. Keys that the card does not need are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class _Model(_Read):
    initialize: str
    base: str | None = None


class _Train(_Read):
    sequence_length: int = Field(gt=0)
    global_batch_size: int = Field(gt=0)
    learning_rate: float


class Settings(_Read):
    """The settings that a checkpoint was trained with, as lineage.json records them."""

    seed: int
    model: _Model
    train: _Train
    stages: dict[str, Stage] = Field(min_length=1)


class _LineageFile(_Read):
    settings: Settings


class _Prepared(_Read):
    tokens: int


class Source(_Read):
    """The part of a source's manifest that the card shows."""

    kind: str
    revision: str | None = None
    licence: str | None = None
    origin: dict[str, Any]
    train: _Prepared


def lineage_of(checkpoint: Path) -> Lineage:
    """Read the lineage from the checkpoint and from the run folder that it is in.

    Raises:
        CheckpointError: a manifest or lineage.json that cannot be read.
    """
    manifest = read_checkpoint_manifest(checkpoint) if (checkpoint / MANIFEST).is_file() else None
    run = RunFolder.containing(checkpoint)
    if run is None or manifest is None or not run.lineage(manifest.stage).is_file():
        return Lineage(checkpoint.name, manifest, None, {})
    settings = read_record(run.lineage(manifest.stage), _LineageFile, CheckpointError, _RESTORE).settings
    names = dict.fromkeys(name for stage in settings.stages.values() for name in stage.mixture)
    return Lineage(checkpoint.name, manifest, settings, {name: _source(run, name) for name in names})


_RESTORE = "restore it from a copy, or move it away for a model card without it"


def _source(run: RunFolder, source: str) -> Source | None:
    path = run.source_manifest(source)
    return read_record(path, Source, CheckpointError, _RESTORE) if path.is_file() else None


def model_card(
    architecture: Architecture, dtype: torch.dtype, lineage: Lineage, is_rounded: bool, lost_by_rounding: str = ""
) -> str:
    """The text of README.md.

    Args:
        is_rounded: whether some weights are stored in another dtype than they are exported in.
        lost_by_rounding: how many weights rounding made infinite or 0, in words.
    """
    manifest, settings = lineage.manifest, lineage.settings
    name = f"{manifest.recipe}/{manifest.stage}" if manifest is not None and manifest.recipe else lineage.checkpoint
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if settings is not None and settings.model.initialize == "base":
        lines.append(f"base_model: {settings.model.base}")
    equal = f"equal, bit for bit, after rounding to {DTYPE_NAMES[dtype]}" if is_rounded else "equal, bit for bit"
    summary = (
        f"A {architecture.model_type} model of {architecture.num_parameters():,} parameters in {DTYPE_NAMES[dtype]}, "
        f"exported from a Megatron-Core checkpoint by megatron_octo. Every tensor was read back and found {equal}."
    )
    if lost_by_rounding:
        summary += f" By rounding, {lost_by_rounding}."
    lines += ["---", f"# {name}", "", summary, "", "## Lineage", ""]
    if manifest is None:
        lines += [f"Checkpoint `{lineage.checkpoint}`, saved by another program. Its origin is not recorded."]
    elif settings is None:
        lines += [f"- checkpoint `{lineage.checkpoint}`: {_origin(manifest)}"]
    else:
        lines += _stages(settings, manifest)
        lines += [
            "",
            "## Data",
            "",
            "| source | from | revision | licence | tokens prepared |",
            "|---|---|---|---|---|",
        ]
        lines += [_source_row(source, data) for source, data in lineage.sources.items()]
        lines += ["", "The licences of the data and of the base apply to this model."]
    if manifest is not None:
        versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
        lines += ["", f"Saved with {versions}."]
    return "\n".join(lines) + "\n"


def _stages(settings: Settings, manifest: CheckpointManifest) -> list[str]:
    model, train, stages = settings.model, settings.train, settings.stages
    start = f"`{model.base}`" if model.initialize == "base" else "random weights"
    lines = [f"Recipe `{manifest.recipe}`, seed {settings.seed}. Starts from {start}.", ""]
    lines += ["| stage | parent | tokens | learning rate | mixture |", "|---|---|---|---|---|"]
    per_step = train.sequence_length * train.global_batch_size
    for (name, stage), child in zip(stages.items(), [*list(stages.values())[1:], None], strict=True):
        mark = child.parent.at if child is not None else None
        budget = mark if mark is not None else stage.tokens
        tokens = -(-budget // per_step) * per_step if child is not None else manifest.stage_tokens
        schedule = stage.learning_rate
        peak = stage.peak_learning_rate(train)
        decay = f" to {peak * schedule.floor:g}, {schedule.shape}" if schedule.shape != "constant" else ""
        mixture = ", ".join(f"{source} {weight:g}" for source, weight in stage.mixture.items())
        parent = stage.parent.stage if stage.parent.stage != BASE else "the start"
        lines.append(f"| {name} | {parent} | {format_tokens(tokens)} | {peak:g}{decay} | {mixture} |")
    lines += ["", f"{manifest.lineage_tokens:,} tokens in all, at step {manifest.step} of `{manifest.stage}`."]
    return lines


def _source_row(source: str, data: Source | None) -> str:
    if data is None:
        return f"| {source} | no longer in the run folder | | | |"
    origin = data.origin
    paths = origin.get("paths") if isinstance(origin.get("paths"), list) else []
    shown = origin.get("dataset") or origin.get("corpus") or ", ".join(Path(str(path)).name for path in paths or [])
    tokens = format_tokens(data.train.tokens)
    return f"| {source} | {data.kind}: {shown} | {data.revision or '-'} | {data.licence} | {tokens} |"


def _origin(manifest: CheckpointManifest) -> str:
    if manifest.origin:
        return "imported from " + ", ".join(f"{key} {value}" for key, value in manifest.origin.items() if value)
    return f"step {manifest.step} of {manifest.stage}, {manifest.lineage_tokens:,} tokens"
