"""Writes a stage's checkpoints: under a temporary name, hashed, renamed; and removes old ones."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.managers import SyncManager
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megatron_octo.errors import CheckpointError
from megatron_octo.recipe.train import Checkpointing
from megatron_octo.runtime.checkpoints import (
    CheckpointManifest,
    complete_steps,
    folder_name,
    partial_folder,
    remove_checkpoint,
    remove_partial_checkpoints,
    write_checkpoint_manifest,
)
from megatron_octo.runtime.files import sha256_of, sync, sync_tree
from megatron_octo.runtime.groups import from_first_rank, run_on_all_ranks
from megatron_octo.runtime.rank import Rank
from megatron_octo.runtime.recorded_files import RecordedFile, files_below
from megatron_octo.runtime.signals import exit_with_parent, stop_signals_blocked
from megatron_octo.train.state import save_state


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn torch's CheckpointException, which does not derive from Exception, into ours.

    Raises:
        CheckpointError: with the error of the first writer that failed.
    """
    try:
        yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({first}); make room on that disk or repair it, "
            "and run the same command again: it resumes from the last checkpoint"
        ) from error


class CheckpointSaver:
    """Saves checkpoints of one stage. Every rank calls every method."""

    def __init__(
        self,
        folder: Path,
        rank: Rank,
        settings: Checkpointing,
        keep_steps: frozenset[int],
        on_wait: Callable[[], None],
    ) -> None:
        """Remove the remains of interrupted saves.

        Args:
            keep_steps: checkpoints that are never removed.
            on_wait: called every few seconds while files are hashed.
        """
        self.folder, self.rank, self.settings, self.keep_steps = folder, rank, settings, keep_steps
        self.on_wait = on_wait
        self.queue = AsyncCallsQueue()
        _start_results_queue()
        if rank.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial_checkpoints(folder)
        torch.distributed.barrier()

    def save(
        self,
        manifest: CheckpointManifest,
        model: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
    ) -> None:
        """Write a checkpoint; with `asynchronous` it is complete only after a later `poll` or `close`."""
        self._finalize(blocking=True)  # one save at a time
        partial = partial_folder(self.folder, manifest.step)
        if self.rank.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        torch.distributed.barrier()
        for chunk in model:
            if chunk.ddp_config.overlap_param_gather:
                # the step's new weights are gathered in the next forward; until then each rank has only its own
                chunk.start_param_sync(force_sync=True)
        with _written(partial):
            request = save_state(
                partial, model, optimizer, manifest.resharding, asynchronous=self.settings.asynchronous
            )
        finish = self._finisher(manifest, partial)
        if request is None:
            finish()
        else:
            request.add_finalize_fn(finish)
            self.queue.schedule_async_request(request)

    def poll(self) -> None:
        """Complete an asynchronous save that has been written."""
        if self.queue.get_num_unfinalized_calls():
            self._finalize(blocking=False)

    def close(self) -> None:
        """Wait for a save that is still being written."""
        self._finalize(blocking=True)
        self.queue.close()

    def _finalize(self, *, blocking: bool) -> None:
        with _written(self.folder):
            self.queue.maybe_finalize_async_calls(blocking=blocking)

    def _finisher(self, manifest: CheckpointManifest, partial: Path) -> Callable[[], None]:
        def finish() -> None:
            torch.distributed.barrier()
            records = self._hash_files(partial)
            if self.rank.is_first:
                complete = manifest.model_copy(update={"files": records})
                sync_tree(partial)
                write_checkpoint_manifest(partial, complete)
                final = self.folder / folder_name(manifest.step)
                if final.exists():  # the same step saved again after a resume from an earlier one
                    remove_checkpoint(self.folder, manifest.step)
                partial.rename(final)
                sync(self.folder)
                self._remove_old()
            torch.distributed.barrier()

        return finish

    def _hash_files(self, partial: Path) -> list[RecordedFile]:
        """SHA-256 of every file. The files are divided among the ranks."""
        # one list for all ranks, which may not see the same files on a shared file system yet
        names = from_first_rank(lambda: files_below(partial))
        if not names:
            raise CheckpointError(f"{partial}: Megatron-Core wrote nothing; is the file system full or not shared?")
        own = names[self.rank.rank :: self.rank.world_size]
        mine = run_on_all_ranks(lambda: self._records_of(partial, own), self.on_wait)
        gathered: list[list[RecordedFile]] = [[] for _ in range(self.rank.world_size)]
        torch.distributed.all_gather_object(gathered, mine)
        return sorted((record for part in gathered for record in part), key=lambda record: record.path)

    def _records_of(self, partial: Path, names: list[str]) -> list[RecordedFile]:
        return [
            RecordedFile(path=name, bytes=(partial / name).stat().st_size, sha256=sha256_of(partial / name))
            for name in names
        ]

    def _remove_old(self) -> None:
        removable = [step for step in complete_steps(self.folder) if step not in self.keep_steps]
        for step in removable[: -self.settings.keep]:
            remove_checkpoint(self.folder, step)


def _start_results_queue() -> None:
    """Start the process that hands results of Megatron's writers to the rank, with the stop signals blocked.

    Workaround for megatron-core 0.16.1, which starts it at the first save as a spawned manager in the rank's process
    group. A signal to that group kills it, and every later save then ends in a BrokenPipeError, so that a stop signal
    after a save would lose the steps since. Safe to call again.
    """
    if filesystem_async._results_queue is not None:
        return
    with stop_signals_blocked():
        # starting the tracker unblocks SIGINT and SIGTERM, so it comes first, in a block of its own
        resource_tracker.ensure_running()
    with stop_signals_blocked():
        manager = SyncManager(ctx=get_context("spawn"))
        manager.start(exit_with_parent, (os.getpid(),))
    filesystem_async._results_queue = manager.Queue()
