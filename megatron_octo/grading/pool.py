"""Grading in processes of their own, with limits on time and memory: no answer can hang or crash training.

pebble's ProcessPool is not used: in version 5.2.3 it refuses all work after an idle process was killed (for memory,
say), where this pool replaces the process. It was slower, too: 1.13 ms for a short comparison, against 0.84 ms here
(medians of seven interleaved rounds on two busy cores).
"""

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
from megatron_octo.grading.compare import decide_quickly, is_copied
from megatron_octo.grading.verdict import Decision, Form, Verdict

MEMORY_BYTES = 4 << 30
"""Address space of a grading process. sympy asks for more where a number has a huge power, and is refused."""
_START_SECONDS = 120.0
_WALL_FACTOR = 20
"""A process that sleeps uses no CPU time; it is ended after this many times the limit in wall-clock time."""
_COPY_RULES = ("value", "number", "equation", "text", "unit")
"""Rules by which a copied formula may be right. A list or a matrix that stands in the question may be the answer."""
_TIMED_OUT = "timed out"


class Graders:
    """A pool of processes that compare answers. Safe to use from several threads.

    Example:
        with Graders(processes=2, seconds=5.0) as graders:
            verdict = graders.grade(response, gold)
            reward = 1.0 if verdict.is_right else 0.0
    """

    def __init__(self, processes: int = 2, seconds: float = 5.0, form: Form = "strict") -> None:
        """Start the processes.

        Args:
            processes: how many answers are compared at once.
            seconds: CPU time of the grading process for one answer. Waiting for a free process does not count. An
                answer that takes longer is wrong and its verdict is `timed_out`; the process is killed and replaced.
            form: strict (for rewards) or lenient (for evaluation); see `verdict.Form`.
        """
        self.seconds, self.form = seconds, form
        # spawned: a fork would inherit locks that threads of Ray and vLLM hold
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.Queue[_Grader] = queue.Queue()
        for _ in range(processes):
            self._idle.put(_Grader(self._context))

    def grade(self, response: str, gold: str, question: str | None = None) -> Verdict:
        """Grade a response: does its last box hold the gold answer?

        Args:
            response: the text that a model wrote.
            gold: the gold answer in LaTeX, with or without dollar signs.
            question: the prompt. If it is given, a formula copied from it is marked, and wrong in the strict form.

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
                return Verdict(False, answer, found, timed_out=found == _TIMED_OUT)
            decision = found
        if question is not None and _is_copy(decision, answer, gold, question):
            decision = Decision(True, decision.rule, (*decision.marks, "copied"))
        decision = decision.in_form(self.form)
        return Verdict(decision.is_right, answer, decision.rule, marks=decision.marks)

    def _ask(self, answer: str, gold: str) -> Decision | str:
        """The decision of a grading process; a `str` says why there is none."""
        grader = self._idle.get()
        try:
            return grader.ask(answer, gold, self.seconds)
        except TimeoutError:
            grader = self._replaced(grader)
            return _TIMED_OUT
        except (EOFError, OSError):
            grader = self._replaced(grader)
            return "grader ended"
        finally:
            self._idle.put(grader)

    def _replaced(self, grader: "_Grader") -> "_Grader":
        grader.kill()
        return _Grader(self._context)

    def close(self) -> None:
        """End the processes."""
        while not self._idle.empty():
            self._idle.get().kill()

    def __enter__(self) -> "Graders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _is_copy(decision: Decision, answer: str, gold: str, question: str) -> bool:
    return decision.is_right and decision.rule in _COPY_RULES and is_copied(answer, gold, question)


class _Grader:
    """One grading process, as the parent sees it."""

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.pipe, child_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(child_end,), daemon=True)
        self.process.start()
        child_end.close()
        self.is_ready = False
        self.used = 0.0  # CPU seconds of the process at the end of the last comparison

    def ask(self, answer: str, gold: str, seconds: float) -> Decision | str:
        """Compare an answer with the gold.

        Raises:
            TimeoutError: the comparison took more than `seconds` of CPU time.
            EOFError, OSError: the process has ended.
        """
        if not self.is_ready:  # importing sympy takes seconds, which do not count
            self._wait_until_ready()
        self.pipe.send((answer, gold))
        if not self.pipe.poll(seconds):
            self._wait_for_cpu_time(seconds)
        found: Decision | str
        found, self.used = self.pipe.recv()
        return found

    def _wait_for_cpu_time(self, seconds: float) -> None:
        """Wait on where the limit has passed in wall-clock time, but on a busy machine not in CPU time."""
        started, process = time.monotonic(), psutil.Process(self.process.pid)
        while (left := seconds - (_cpu_seconds(process) - self.used)) > 0:
            if self.pipe.poll(max(left, 0.05)):
                return
            if time.monotonic() - started > _WALL_FACTOR * seconds:
                break
        raise TimeoutError

    def _wait_until_ready(self) -> None:
        try:
            if not self.pipe.poll(_START_SECONDS):
                raise TimeoutError
            _, self.used = self.pipe.recv()
            self.is_ready = True
        except (TimeoutError, EOFError) as error:
            # must not count as a wrong answer: all answers would be wrong, with no message that says why
            raise RuntimeSetupError(
                f"a grader did not start within {_START_SECONDS:.0f} s; its own message is above. Is math-verify "
                "installed (`pip install 'math-verify==0.9.0'`), and memory free?"
            ) from error

    def kill(self) -> None:
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
    """The main function of a grading process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the pool ends its processes
    from megatron_octo.grading.decide import decide  # imports sympy, which the parent does not need

    decide("x+1", "x+2")  # makes the grammar build its tables now
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pipe.send((None, time.process_time()))
    while True:
        try:
            answer, gold = pipe.recv()
        except EOFError:
            return
        try:
            found: Decision | str = decide(answer, gold)
        except Exception:  # a parser may raise anything; an answer that it cannot read is not the gold
            found = "error"
        pipe.send((found, time.process_time()))
