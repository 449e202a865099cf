"""The process that hands results of Megatron's checkpoint writers to the rank, started out of reach of stop signals.

megatron-core 0.16.1 starts it at the first save: a spawned manager in the rank's process group, which a signal to that
group kills. Every later save of the process then ends in a BrokenPipeError, so a stop signal after a save loses the
steps since.
"""

import os
from multiprocessing import get_context, resource_tracker
from multiprocessing.managers import SyncManager

from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_octo.runtime.processes import leave_with
from megatron_octo.runtime.signals import stop_signals_blocked


def start_results_queue() -> None:
    """Start the manager with the stop signals blocked, and give its queue to Megatron. Safe to call again."""
    if filesystem_async._results_queue is not None:
        return
    with stop_signals_blocked():
        # a helper of the manager's start, which unblocks SIGINT and SIGTERM: it comes first, in a block of its own
        resource_tracker.ensure_running()
    with stop_signals_blocked():
        manager = SyncManager(ctx=get_context("spawn"))
        manager.start(leave_with, (os.getpid(),))
    filesystem_async._results_queue = manager.Queue()
