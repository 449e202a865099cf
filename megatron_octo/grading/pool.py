"""Grading in processes of their own, with limits on time and memory: no answer can hang or crash training."""

import multiprocessing
import queue
import resource
import signal
import time
from multiprocessing.connection import Connection
from types import TracebackType

import psutil

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.grading.boxes import extract_answer
from megatron_octo.grading.compare import Decision, decide_quickly, is_copied
from megatron_octo.grading.verdict import Form, Verdict

MEMORY_BYTES = 4 << 30
"""Address space of a grader. sympy on a number with a huge power asks for more, and is refused."""
_START_SECONDS = 120.0
_WALL_FACTOR = 20
"""A grader that sleeps uses no CPU time; after so many limits of wall clock it is ended too."""

_COPIES = ("value", "number", "equation", "text", "unit")
"""Rules by which a copied formula can be right; a list or a matrix that stands in the question may be the answer."""


class Graders:
    """A pool of processes that compare answers. Safe to use from several threads."""

    def __init__(self, processes: int = 2, seconds: float = 5.0, form: Form = "strict") -> None:
        """Start them.

        Args:
            processes: how many answers are compared at once.
            seconds: CPU time of the grading process for one answer; waiting for a free process is not counted. An
                answer that takes longer is wrong, its verdict says so, and the process is ended and replaced.
            form: strict (for rewards) or lenient (for evaluation); see `verdict.Form`.
        """
        self.seconds, self.form = seconds, form
        # spawned: a fork would take the locks of Ray's and vLLM's threads along
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.Queue[_Grader] = queue.Queue()
        for _ in range(processes):
            self._idle.put(_Grader(self._context))

    def grade(self, response: str, gold: str, question: str | None = None) -> Verdict:
        """Whether the last box of a response holds the gold answer.

        Args:
            response: what a model wrote.
            gold: LaTeX, without dollars or with.
            question: the prompt. Given, a formula copied out of it is marked, and wrong in the strict form.

        Raises:
            RuntimeSetupError: a grading process did not start.
        """
        answer = extract_answer(response)
        if answer is None:
            return Verdict(False, None, "no box")
        decision = decide_quickly(answer, gold)
        if decision is None:
            found = self._ask(answer, gold)
            if isinstance(found, str):
                return Verdict(False, answer, found, timed_out=found == "timed out")
            decision = found
        if decision.rule in _COPIES and decision.right and question is not None and is_copied(answer, gold, question):
            decision = Decision(True, decision.rule, (*decision.marks, "copied"))
        decision = decision.in_form(self.form)
        return Verdict(decision.right, answer, decision.rule, marks=decision.marks)

    def _ask(self, answer: str, gold: str) -> Decision | str:
        grader = self._idle.get()
        try:
            return grader.ask(answer, gold, self.seconds)
        except TimeoutError:
            grader = self._replaced(grader)
            return "timed out"
        except (EOFError, OSError):
            grader = self._replaced(grader)
            return "grader ended"
        finally:
            self._idle.put(grader)

    def _replaced(self, grader: "_Grader") -> "_Grader":
        grader.end()
        return _Grader(self._context)

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
        self.used = 0.0  # CPU seconds when the last item was done

    def ask(self, answer: str, gold: str, seconds: float) -> Decision | str:
        if not self.is_ready:  # sympy takes seconds to import, which are not the answer's
            self._start()
        self.pipe.send((answer, gold))
        if not self.pipe.poll(seconds):
            self._wait_for_cpu_time(seconds)
        found: Decision | str
        found, self.used = self.pipe.recv()
        return found

    def _wait_for_cpu_time(self, seconds: float) -> None:
        """Wall clock has run out; on a busy machine CPU time may not have."""
        started, process = time.monotonic(), psutil.Process(self.process.pid)
        while (left := seconds - (_cpu_seconds(process) - self.used)) > 0:
            if self.pipe.poll(max(left, 0.05)):
                return
            if time.monotonic() - started > _WALL_FACTOR * seconds:
                break
        raise TimeoutError

    def _start(self) -> None:
        try:
            if not self.pipe.poll(_START_SECONDS):
                raise TimeoutError
            _, self.used = self.pipe.recv()
            self.is_ready = True
        except (TimeoutError, EOFError) as error:
            # not an answer's fault: taken for one, every answer would be wrong, and nobody would hear why
            raise RuntimeSetupError(
                f"a grader did not start within {_START_SECONDS:.0f} s; what it said stands above. Is math-verify "
                "installed (`pip install 'math-verify==0.9.0'`), and memory free?"
            ) from error

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error as error:
        raise EOFError from error
    return float(times.user + times.system)


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the pool ends its processes
    from megatron_octo.grading.decide import decide  # sympy is imported here alone

    decide("x+1", "x+2")  # and the grammar's tables are built
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pipe.send((None, time.process_time()))
    while True:
        try:
            answer, gold = pipe.recv()
        except EOFError:
            return
        try:
            found: Decision | str = decide(answer, gold)
        except Exception:  # whatever a parser says of what a model wrote: it is not the answer
            found = "error"
        pipe.send((found, time.process_time()))
