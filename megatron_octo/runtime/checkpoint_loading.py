"""Megatron's loading of a checkpoint, with every road to pickle closed.

`dist_checkpointing.load` unpickles three things before it looks at anything: `.metadata` (torch's FileSystemReader),
objects among the tensors (torch's DefaultLoadPlanner, with `weights_only=False`) and `common.pt`. Inside `loading` the
three are read by this room's readers, whoever asks for them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoint_metadata import check_format, read_checkpoint_metadata
from megatron_octo.runtime.checkpoint_objects import load_common, load_object, plain_values_only


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Let Megatron load a checkpoint. What is wrong with it ends as an error of ours, on every rank.

    Raises:
        CheckpointError: a format, metadata or objects that are not read here, damaged files, or tensors that do not fit
            what is asked for.
    """
    check_format(folder)
    metadata = read_checkpoint_metadata(folder)

    def read_metadata(reader: FileSystemReader, *_: Any, **__: Any) -> Metadata:
        # asked for twice or three times a load: read once
        return metadata if Path(reader.path) == folder else read_checkpoint_metadata(Path(reader.path))

    def load_bytes(planner: DefaultLoadPlanner, item: ReadItem, value: Any) -> None:
        name = item.dest_index.fqn
        loaded = load_object(value, f"{folder}: {name}")
        if planner.flatten_state_dict:
            set_element(planner.original_state_dict, planner.mappings[name], loaded)
        else:
            planner.state_dict[name] = loaded

    def common(strategy: TorchCommonLoadStrategy, checkpoint_dir: str | Path) -> dict[str, Any]:
        return load_common(Path(checkpoint_dir))

    try:
        with (
            _replaced(FileSystemReader, "read_metadata", read_metadata),
            _replaced(DefaultLoadPlanner, "load_bytes", load_bytes),
            _replaced(TorchCommonLoadStrategy, "load_common", common),
            plain_values_only(),
        ):
            yield
    except CheckpointingException as problem:
        raise CheckpointError(f"{folder}: does not fit this model: {problem}") from problem
    except CheckpointException as problem:  # torch's: what each rank raised, and no Exception itself
        raise _of_ranks(folder, problem) from None


@contextmanager
def _replaced(owner: type, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """A method of another's class, replaced for a while."""
    before = owner.__dict__[name]
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _of_ranks(folder: Path, problem: CheckpointException) -> CheckpointError:
    rank, (raised, _) = next(iter(problem.failures.items()))
    if isinstance(raised, CheckpointError):
        return raised
    if isinstance(raised, CheckpointingException):
        return CheckpointError(f"{folder}: does not fit this model: {raised}")
    reason = f"{type(raised).__name__}: {raised!s:.300}"
    return CheckpointError(f"{folder}: rank {rank} cannot load it ({reason}); `octo checkpoint verify` tells more")
