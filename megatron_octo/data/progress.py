"""The progress bar of one source, updated from small files that its tasks write."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from megatron_octo.data.tally import read_progress

_POLL_SECONDS = 0.5


class _Rate(ProgressColumn):
    """Tokens per second since the source was started."""

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        tokens = task.fields["tokens"]
        return Text(f"{tokens / elapsed:,.0f} tokens/s" if elapsed > 0 and tokens else "")


@contextmanager
def progress_of(console: Console, name: str, folder: Path, tasks: int, total: int | None) -> Iterator[None]:
    """Show a bar while the body runs. Without `total`, it is open-ended and shows no remaining time."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[documents]:,} documents"), _Rate(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        if bar.disable:
            yield
            return
        task = bar.add_task(name, total=total, documents=0, tokens=0)
        with _Poller(lambda: _show(bar, task, folder, tasks)):
            yield


def _show(bar: Progress, task: TaskID, folder: Path, tasks: int) -> None:
    seen = [progress for rank in range(tasks) if (progress := read_progress(folder, rank)) is not None]
    documents, tokens, done = (sum(p[key] for p in seen) for key in ("documents", "tokens", "done"))
    bar.update(task, completed=done, documents=documents, tokens=tokens)


class _Poller:
    """Calls a function twice a second from its own thread."""

    def __init__(self, poll: Callable[[], None]) -> None:
        self._poll, self._stop = poll, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._poll()
