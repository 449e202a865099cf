"""Megatron's loading of a checkpoint, with every path to pickle closed.

`dist_checkpointing.load` unpickles three things before it looks at anything: `.metadata` (torch's FileSystemReader),
objects among the tensors (torch's DefaultLoadPlanner, with `weights_only=False`) and `common.pt`. While a checkpoint is
loaded here, all three are read by `checkpoint_metadata.py` and `checkpoint_objects.py` instead.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from megatron_octo.errors import CheckpointError
from megatron_octo.runtime.checkpoint_metadata import check_format, read_checkpoint_metadata
from megatron_octo.runtime.checkpoint_objects import check_extra_states, load_common, load_object, plain_values_only


@dataclass(frozen=True)
class LoadedState:
    """The result of loading a sharded state with Megatron."""

    state: dict[str, Any]
    absent: list[str]
    """Tensors that were asked for and that the checkpoint does not have."""
    surplus: list[str]
    """Tensors that the checkpoint has and that were not asked for."""


def load_sharded_state(folder: Path, state: dict[str, Any], *, with_common: bool) -> LoadedState:
    """Load Megatron's sharded state from a checkpoint of any layout. All ranks call it.

    FP8 scales (`_extra_state`), which Transformer Engine stores and other layer specs do not have, are in neither list
    of differences.

    Args:
        state: sharded tensors as `sharded_state_dict` makes them; their memory is filled.
        with_common: also load `common.pt`, which holds what the optimizer stores once for all ranks.

    Raises:
        CheckpointError: on every rank: a format, metadata or objects that are not read here, damaged files, or tensors
            of another shape.
    """
    strategy = None if with_common else _NoCommon()
    with warnings.catch_warnings(), _without_pickle(folder):
        warnings.simplefilter("ignore")
        # "missing" is Megatron's word for what the checkpoint has and the state does not
        loaded, surplus, absent = dist_checkpointing.load(
            state, str(folder), common_strategy=strategy, strict=StrictHandling.RETURN_ALL
        )
    return LoadedState(
        loaded, *(sorted(key for key in keys if "_extra_state" not in key) for keys in (absent, surplus))
    )


def fill_chunk(chunk: torch.nn.Module, state: dict[str, Any], folder: Path) -> None:
    """Put the loaded state of one model chunk into it.

    Raises:
        CheckpointError: FP8 scales that hold more than tensors, plain values and Transformer Engine's recipes.
    """
    chunk.load_state_dict(check_extra_states(state, str(folder)), strict=False)


def load_weights(folder: Path, chunks: Sequence[GPTModel]) -> None:
    """Fill this rank's model chunks with a checkpoint's weights, of any layout. All ranks call it.

    A weight takes the dtype of the model. Rows that pad the vocabulary become zero.

    Raises:
        CheckpointError: tensors that are absent, by name; or see `load_sharded_state`.
    """
    # Megatron needs the kind of optimizer sharding even without an optimizer
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    state: dict[str, Any] = {f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)}
    loaded = load_sharded_state(folder, state, with_common=False)  # surplus tensors are the optimizer's
    if absent := loaded.absent:
        raise CheckpointError(
            f"{folder}: lacks {len(absent)} tensors of this model ({', '.join(absent[:4])}, ...); give a checkpoint of "
            "the same architecture"
        )
    for i, chunk in enumerate(chunks):
        fill_chunk(chunk, loaded.state[f"model{i}"], folder)


class _NoCommon(TorchCommonLoadStrategy):
    """Skips `common.pt`: it holds the optimizer's part, and in Megatron-LM's own checkpoints its options."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        return {}


@contextmanager
def _without_pickle(folder: Path) -> Iterator[None]:
    """Replace Megatron's and torch's unpickling while the body loads a checkpoint; turn their errors into ours."""
    check_format(folder)
    metadata = read_checkpoint_metadata(folder)

    def read_metadata(reader: FileSystemReader, *_: Any, **__: Any) -> Metadata:
        # every load asks two or three times; read it once
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
    except CheckpointException as problem:  # torch's: collects the errors of all ranks; it is no Exception
        raise _first_error(folder, problem) from None


@contextmanager
def _replaced(owner: type, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of a library's class while the body runs."""
    before = owner.__dict__[name]
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _first_error(folder: Path, problem: CheckpointException) -> CheckpointError:
    rank, (raised, _) = next(iter(problem.failures.items()))
    if isinstance(raised, CheckpointError):
        return raised
    if isinstance(raised, CheckpointingException):
        return CheckpointError(f"{folder}: does not fit this model: {raised}")
    reason = f"{type(raised).__name__}: {raised!s:.300}"
    return CheckpointError(
        f"{folder}: rank {rank} cannot load it ({reason}); `octo checkpoint verify` names the damaged files"
    )
