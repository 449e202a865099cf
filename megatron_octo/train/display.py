"""The progress of a stage on the console: a live line on a terminal, a line every few seconds in a log."""

import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_octo.recipe.tokens import format_tokens

LOG_SECONDS = 10.0
"""Seconds between two lines where the output is not a terminal."""


class Display:
    """The live line of a stage. Rank 0 only."""

    def __init__(self, stage: str, steps: int, first_step: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.stage, self.steps = stage, steps
        self.last_line = 0.0
        self.progress: Progress | None = None
        self.started, self.first_step = time.monotonic(), first_step
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=18),
                TextColumn("{task.completed}/{task.total}  {task.fields[line]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.progress.add_task(stage, total=steps, completed=first_step, line="")
            self.progress.start()

    def step(self, record: dict[str, Any]) -> None:
        """Show a step."""
        line = (
            f"{format_tokens(record['stage_tokens']):>6} tokens  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"grad {record['grad_norm']:.2f}  {format_tokens(int(record['tokens_per_second']))} tok/s"
        )
        if record["mfu"] is not None:
            line += f"  MFU {100 * record['mfu']:.1f}%"
        if self.progress is not None:
            self.progress.update(self.task, completed=record["step"], line=line)
        elif time.monotonic() - self.last_line > LOG_SECONDS or record["step"] in (1, self.steps):
            self.last_line = time.monotonic()
            self._print(f"{self.stage} {record['step']:>6}/{self.steps}  {line}  left {self._left(record['step'])}")

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self._print(f"{self.stage}: {text}")

    def _print(self, text: str) -> None:
        # a closed terminal or pipe must not prevent the checkpoint; rich raises SystemExit there
        with suppress(OSError, SystemExit):
            self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """End the live line."""
        if self.progress is not None:
            with suppress(OSError, SystemExit):
                self.progress.stop()

    def _left(self, step: int) -> str:
        trained = step - self.first_step
        seconds = int((time.monotonic() - self.started) / max(trained, 1) * (self.steps - step))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
