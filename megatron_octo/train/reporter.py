"""Reports a stage while it trains: live line, announcements, metrics files, TensorBoard, W&B."""

from dataclasses import dataclass
from typing import Any

from megatron_octo.data.mixture import count_epochs
from megatron_octo.runtime.records import as_ranges
from megatron_octo.train.display import Display
from megatron_octo.train.metrics import MetricsWriter
from megatron_octo.train.plan import StagePlan
from megatron_octo.train.start import Branch, FromBase, RandomWeights, Resume

StepRecord = dict[str, Any]


class Reporter:
    """Silent: the reporter of every rank but the first."""

    def say(self, text: str) -> None:
        """A line of its own."""

    def step(self, record: StepRecord) -> None:
        """A step is complete."""

    def validation(self, step: int, losses: dict[str, float]) -> None:
        """Validation losses by source, after a number of steps."""

    def flush(self) -> None:
        """Flush the records to disk; called before a checkpoint, so that none is newer than its records."""

    def close(self) -> None:
        """The stage ends or stops."""


@dataclass(frozen=True)
class FirstRankReporter(Reporter):
    """Writes and shows everything."""

    plan: StagePlan
    display: Display
    metrics: MetricsWriter

    def say(self, text: str) -> None:
        self.display.say(text)

    def step(self, record: StepRecord) -> None:
        self.metrics.step(record)
        self.display.step(record)

    def validation(self, step: int, losses: dict[str, float]) -> None:
        stage_tokens = self.plan.tokens_after(step)
        tokens = {"stage_tokens": stage_tokens, "tokens": self.plan.lineage_tokens + stage_tokens}
        for source, loss in losses.items():
            self.metrics.validated({"step": step, **tokens, "source": source, "loss": loss})

    def flush(self) -> None:
        self.metrics.sync()

    def close(self) -> None:
        self.display.close()
        self.metrics.close()


def open_reporter(plan: StagePlan, *, is_first: bool, note: str) -> Reporter:
    """The reporter of a rank. The first rank's cuts the records back to the resume and announces the stage.

    Args:
        note: one more line to announce.
    """
    if not is_first:
        return Reporter()
    run, stage = plan.run, plan.name
    metrics = MetricsWriter(
        run.metrics(stage),
        run.validation(stage),
        plan.train.logging,
        name=f"{plan.recipe.name}/{stage}",
        resume_step=plan.first_step,
    )
    reporter = FirstRankReporter(plan, Display(stage, plan.steps, plan.first_step), metrics)
    for line in (*_announcements(plan), note, *_damaged_records(metrics)):
        reporter.say(line)
    return reporter


def _announcements(plan: StagePlan) -> list[str]:
    """How the stage begins, its budget, sources that repeat, and accepted changes."""
    match plan.start:
        case Resume(checkpoint):
            begins = f"resumes after step {checkpoint.manifest.step}"
        case Branch():
            begins = f"branches off {plan.settings.parent.stage} at step {plan.recipe.parent_step(plan.name)}"
        case FromBase():
            begins = f"starts from {plan.recipe.model.base}"
        case RandomWeights():
            begins = "starts from random weights"
    budget = (
        f"{begins}; {plan.steps} steps x {plan.train.tokens_per_step} tokens = {plan.tokens_after(plan.steps)} "
        f"(budget {plan.settings.tokens}); tensor {plan.layout.tensor}, pipeline {plan.layout.pipeline}"
    )
    lines = [budget]
    epochs = count_epochs(plan.recipe, plan.run, plan.name)
    if repeated := [f"{name} {times:.1f}x" for name, times in epochs.items() if times > 1.0]:
        lines.append(f"sources seen more than once: {', '.join(repeated)}")
    return [*lines, *(f"accepted a change: {change}" for change in plan.accepted_changes)]


def _damaged_records(metrics: MetricsWriter) -> list[str]:
    """Which records are damaged or missing."""
    lines = []
    if metrics.torn:
        lines.append(f"metrics.jsonl and validation.jsonl: {metrics.torn} damaged lines dropped, the others kept")
    if metrics.lost:
        lines.append(
            f"metrics.jsonl has no record of steps {as_ranges(metrics.lost)}, which were trained: the curves have a gap"
        )
    return lines
