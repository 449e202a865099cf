"""Grading in processes of their own, with limits on time and memory: no answer can hang or crash training."""

import multiprocessing
import queue
import resource
import signal
from multiprocessing.connection import Connection
from types import TracebackType

from megatron_octo.rl.reward import boxed, is_right, same_text

MEMORY_BYTES = 4 << 30
"""Address space of a grader. sympy on a number with a huge power asks for more, and is refused."""
_START_SECONDS = 120.0


class Graders:
    """A pool of processes that compare answers. Safe to use from several threads."""

    def __init__(self, processes: int = 2, seconds: float = 5.0) -> None:
        """Start them.

        Args:
            seconds: for one answer. One that takes longer is wrong, and its process is ended and replaced.
        """
        self.seconds = seconds
        # spawned: a fork would take the locks of Ray's and vLLM's threads along
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.Queue[_Grader] = queue.Queue()
        for _ in range(processes):
            self._idle.put(_Grader(self._context))

    def grade(self, response: str, gold: str) -> tuple[bool, bool, bool]:
        r"""Whether a response's last `\boxed{}` is the gold answer; whether it has one; whether time ran out."""
        answer = boxed(response)
        if answer is None:
            return False, False, False
        if same_text(answer, gold):
            return True, True, False
        grader = self._idle.get()
        try:
            right = grader.ask(answer, gold, self.seconds)
        except (TimeoutError, EOFError, OSError) as error:
            grader.end()
            grader = _Grader(self._context)
            return False, True, isinstance(error, TimeoutError)
        finally:
            self._idle.put(grader)
        return right, True, False

    def close(self) -> None:
        """End them."""
        while not self._idle.empty():
            self._idle.get().end()

    def __enter__(self) -> "Graders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Grader:
    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.is_ready = False

    def ask(self, answer: str, gold: str, seconds: float) -> bool:
        if not self.is_ready:  # sympy takes seconds to import, which are not the answer's
            self._start()
        self.pipe.send((answer, gold))
        self._wait(seconds)
        return bool(self.pipe.recv())

    def _start(self) -> None:
        try:
            self._wait(_START_SECONDS)
            self.is_ready = bool(self.pipe.recv())
        except (TimeoutError, EOFError) as error:
            # not an answer's fault: taken for one, every answer would be wrong, and nobody would hear why
            raise RuntimeError(
                "a grader did not start; what it said stands above. Is math-verify installed, and memory free?"
            ) from error

    def _wait(self, seconds: float) -> None:
        if not self.pipe.poll(seconds):
            raise TimeoutError

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the pool ends its processes
    is_right("1", "2")  # imports
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pipe.send(True)
    while True:
        try:
            answer, gold = pipe.recv()
        except EOFError:
            return
        try:
            right = is_right(answer, gold)
        except Exception:  # whatever a parser says of what a model wrote: it is not the answer
            right = False
        pipe.send(right)
