"""Curves on disk: metrics.jsonl, validation.jsonl, TensorBoard, and W&B if the recipe names a project."""

import json
import os
from pathlib import Path
from typing import Any

from megatron_octo.recipe.train import Logging
from megatron_octo.runtime.records import missing_steps, truncate_records


class MetricsWriter:
    """Appends lines, flushed one by one, and mirrors scalars. Rank 0 only."""

    def __init__(self, metrics: Path, validation: Path, settings: Logging, *, name: str, resume_step: int) -> None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        kept = truncate_records(metrics, resume_step)
        self.lost = missing_steps(kept.kept, resume_step)
        """Steps before the resume whose records are gone or damaged."""
        self.torn = kept.damaged + truncate_records(validation, resume_step).damaged
        self.metrics_file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.validation_file = open(validation, "a", encoding="utf-8")  # noqa: SIM115
        self.board, self.wandb = None, None
        if settings.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(metrics.parent / "tensorboard"), purge_step=resume_step or None)
        if settings.wandb_project is not None:
            self.wandb = _start_wandb(settings.wandb_project, name)

    def step(self, record: dict[str, Any]) -> None:
        """One optimizer step."""
        self.metrics_file.write(json.dumps(record) + "\n")
        self.metrics_file.flush()
        scalars = {f"train/{key}": record[key] for key in ("loss", "lr", "grad_norm", "tokens_per_second", "mfu")}
        scalars |= {f"tokens/{name}": count for name, count in record["source_tokens"].items()}
        self._mirror(scalars, record["step"])

    def validated(self, record: dict[str, Any]) -> None:
        """One source's validation loss."""
        self.validation_file.write(json.dumps(record) + "\n")
        self.validation_file.flush()
        self._mirror({f"validation/{record['source']}": record["loss"]}, record["step"])

    def sync(self) -> None:
        """Flush the records to disk; called before a checkpoint, so that none is newer than its records."""
        for file in (self.metrics_file, self.validation_file):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flush and close everything."""
        self.metrics_file.close()
        self.validation_file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _mirror(self, scalars: dict[str, float | None], step: int) -> None:
        known = {key: value for key, value in scalars.items() if value is not None}
        if self.board is not None:
            for key, value in known.items():
                self.board.add_scalar(key, value, step)
        if self.wandb is not None:
            self.wandb.log(known, step=step)


def _start_wandb(project: str, name: str) -> Any:
    import wandb  # the plan has checked that it is installed

    return wandb.init(project=project, name=name, resume="allow")
