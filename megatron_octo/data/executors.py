"""Runs a pipeline in processes of this machine, as a SLURM array, or on Ray, through datatrove's executors."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import dill  # type: ignore[import-untyped]
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from megatron_octo.errors import DataError
from megatron_octo.runtime.local_ray import start_local_ray
from megatron_octo.runtime.signals import exit_with_parent

ExecutorName = Literal["local", "slurm", "ray"]
_SLURM_NUMBERS = ("cpus_per_task", "mem_per_cpu_gb", "tasks_per_job", "max_array_size")
_SLURM_TEXTS = ("partition", "time", "qos", "env_command", "job_name")
_POLL_SECONDS = 2.0


def run_pipeline(
    steps: Sequence[PipelineStep],
    tasks: int,
    workers: int,
    folder: Path,
    executor: ExecutorName,
    options: Mapping[str, str],
) -> None:
    """Run a pipeline's tasks and return when all are finished.

    Args:
        folder: for the executor's own logs and completion marks. For SLURM and Ray it must be on a shared file system.
        options: the executor's options; SLURM needs at least `partition` and `time`.

    Raises:
        DataError: a task failed, or the executor cannot be used here.
    """
    if executor == "local":
        _LocalExecutor(list(steps), tasks, min(workers, tasks), logging_dir=str(folder)).run()
    elif executor == "slurm":
        _run_on_slurm(list(steps), tasks, workers, folder, options)
    else:
        _run_on_ray(list(steps), tasks, workers, folder, options)


def check_executor(executor: ExecutorName, options: Mapping[str, str]) -> None:
    """Refuse an executor that cannot be used here, before any work.

    Raises:
        DataError: it cannot be used, or an option is unknown, missing or not a number.
    """
    if executor == "slurm":
        _slurm_arguments(options)
        if shutil.which("sbatch") is None:
            raise DataError("executor 'slurm': there is no sbatch here; run on a login node, or use executor 'local'")
    elif executor == "ray":
        if find_spec("ray") is None:
            raise DataError("executor 'ray': ray is not installed; install it, or use executor 'local'")
    elif options:
        raise DataError(f"executor 'local' has no options, but {', '.join(options)} was given; leave it out")


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor with its own `run`, for two reasons.

    datatrove's starts a manager process that outlives a killed parent, and its workers would too: here they leave
    with it. And datatrove logs every task to the terminal: here its log is dropped.
    """

    pipeline: list[PipelineStep]

    def run(self) -> None:
        logger.disable("datatrove")
        try:
            ranks = self.get_incomplete_ranks(range(self.tasks))
            if self.workers == 1 or len(ranks) == 1:
                pipeline = self.pipeline
                for rank in ranks:
                    self.pipeline = deepcopy(pipeline)
                    self._run_for_rank(rank)
            else:
                self._in_processes(ranks)
        finally:
            logger.enable("datatrove")

    def _in_processes(self, ranks: list[int]) -> None:
        work = dill.dumps(self)
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        with ProcessPoolExecutor(
            self.workers, get_context("spawn"), initializer=_begin_worker, initargs=(threads,)
        ) as pool:
            futures = [pool.submit(_run_rank, work, rank) for rank in ranks]
            try:
                for future in futures:
                    future.result()
            except BrokenProcessPool:
                raise DataError(
                    f"one of {self.workers} workers was killed from outside (out of memory?); use fewer --workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    logger.disable("datatrove")
    exit_with_parent(os.getppid())


def _run_rank(work: bytes, rank: int) -> None:
    # unpickled again for every task, so that each task starts with fresh steps
    executor = dill.loads(work)  # noqa: S301 (pickled by the parent)
    executor._run_for_rank(rank)


def _slurm_arguments(options: Mapping[str, str]) -> dict[str, Any]:
    known = (*_SLURM_TEXTS, *_SLURM_NUMBERS)
    arguments: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            raise DataError(f"executor 'slurm': option {key!r} is unknown; known: {', '.join(known)}")
        if key in _SLURM_NUMBERS and not value.isdigit():
            raise DataError(f"executor 'slurm': option {key} = {value!r} is not a whole number; give one")
        arguments[key] = int(value) if key in _SLURM_NUMBERS else value
    if missing := [key for key in ("partition", "time") if key not in options]:
        raise DataError(f"executor 'slurm': option {missing[0]} is missing; give it, e.g. partition=cpu time=04:00:00")
    return arguments


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's SLURM executor without its second job, which only sums statistics."""

    def launch_merge_stats(self) -> None:
        return


def _run_on_slurm(
    steps: list[PipelineStep], tasks: int, workers: int, folder: Path, options: Mapping[str, str]
) -> None:
    arguments: dict[str, Any] = {
        "job_name": "octo-data", "qos": "", "env_command": f'export PATH="{Path(sys.executable).parent}:$PATH"'
    }  # fmt: skip
    arguments |= _slurm_arguments(options)
    job = _SlurmExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(folder), **arguments)
    try:
        job.run()
    except subprocess.CalledProcessError as error:
        raise DataError(
            f"executor 'slurm': sbatch refused the job (exit {error.returncode}); see its message above"
        ) from None
    try:
        _wait(job.get_incomplete_ranks, lambda: _in_queue(str(job.job_id)), folder)
    except KeyboardInterrupt:
        subprocess.run(["scancel", str(job.job_id)], check=False)
        raise


def _wait(incomplete: Callable[[], list[int]], is_alive: Callable[[], bool], folder: Path) -> None:
    while incomplete():
        if not is_alive():
            time.sleep(_POLL_SECONDS)  # marks can appear late on a shared file system
            if left := incomplete():
                raise DataError(
                    f"{len(left)} tasks ended without finishing (first: task {left[0]}); their logs are in {folder}"
                )
            return
        time.sleep(_POLL_SECONDS)


def _in_queue(job: str) -> bool:
    listed = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and bool(listed.stdout.strip())


def _run_on_ray(steps: list[PipelineStep], tasks: int, workers: int, folder: Path, options: Mapping[str, str]) -> None:
    ray = import_module("ray")
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if "address" in options:
            ray.init(address=options["address"], **quiet)
        else:
            start_local_ray(**quiet)
    logger.disable("datatrove")
    try:
        job = RayPipelineExecutor(
            steps, tasks=tasks, workers=workers, logging_dir=str(folder),
            cpus_per_task=int(options.get("cpus_per_task", "1")),
            mem_per_cpu_gb=float(options.get("mem_per_cpu_gb", "2")),
        )  # fmt: skip
        job.run()
    finally:
        logger.enable("datatrove")
    if left := job.get_incomplete_ranks():
        raise DataError(f"{len(left)} tasks on Ray ended without finishing (first: task {left[0]}); see {folder}")
