"""The parts of a checkpoint that are not tensors: `common.pt`, and objects among the tensors. Read without pickle.

torch.load with `weights_only=True` loads tensors and plain values. A program can allow more classes, and Megatron
allows sixteen (numpy's, its options, its enumerations). Nothing that is saved here needs any of them.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from megatron_octo.errors import CheckpointError
from megatron_octo.reading.json_text import shortened
from megatron_octo.runtime.links import check_inside

COMMON = "common.pt"
MOST_OBJECT_BYTES = 256 << 20
"""An object and our `common.pt` have a few thousand bytes, Megatron-LM's `common.pt` a few hundred thousand."""
_TE = "transformer_engine.common.recipe"
_FP8_RECIPES = (
    "DelayedScaling", "Float8CurrentScaling", "MXFP8BlockScaling", "Float8BlockScaling", "NVFP4BlockScaling", "Format",
    "_FormatHelper", "_OverrideLinearPrecision", "MMParams", "QParams",
)  # fmt: skip
"""Classes of Transformer Engine that occur in pickled FP8 scales."""


def load_object(source: IO[bytes], where: str) -> Any:
    """One object that torch.save wrote: tensors on the CPU, dict, list, tuple, text and numbers.

    Args:
        source: a file or BytesIO.
        where: the name of the object, for messages.

    Raises:
        CheckpointError: it names any other class, or is compressed, too large or damaged.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{where}: compressed, which torch.save never does; it is not read")
        if (total := sum(entry.file_size for entry in entries)) > MOST_OBJECT_BYTES:
            raise CheckpointError(f"{where}: {total:,} bytes, and at most {MOST_OBJECT_BYTES:,} are read")
        source.seek(0)
        with plain_values_only():
            return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refused:
        raise CheckpointError(
            f"{where}: holds more than tensors and plain values ({_named(refused)}), which is not loaded; do not use "
            "this checkpoint"
        ) from None
    except CheckpointError:
        raise
    except Exception as problem:  # a damaged archive can raise anything
        reason = f"{type(problem).__name__}: {problem!s:.120}"
        raise CheckpointError(f"{where}: damaged or cut short ({reason}); restore it from a copy") from None


def load_common(folder: Path) -> dict[str, Any]:
    """The content of `common.pt`, which a checkpoint stores once for all ranks.

    Raises:
        CheckpointError: see `load_object`; or it is not a mapping.
    """
    path = folder / COMMON
    check_inside(folder, path, CheckpointError)
    try:
        with open(path, "rb") as file:
            common = load_object(file, str(path))
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem.strerror}); restore it from a copy") from None
    if not isinstance(common, dict):
        raise CheckpointError(f"{path}: holds a {type(common).__name__}, not a mapping; restore it from a copy")
    return common


def _named(refused: pickle.UnpicklingError) -> str:
    """The class or function that torch refused. torch's own message ends in advice to allow it."""
    said = str(refused)
    if found := re.search(r"GLOBAL (\S+)", said):
        return shortened(found.group(1))
    return shortened(said.rpartition("error: ")[2].splitlines()[0] if said else "no reason given")


@contextmanager
def plain_values_only() -> Iterator[None]:
    """Withdraw the classes that Megatron allowed to torch.load, while the body runs."""
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(added)


def check_extra_states(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A model's loaded state in which every `_extra_state` entry was read safely and pickled again.

    Transformer Engine stores FP8 scales under that name as a pickle, in bytes or in a tensor of bytes, and unpickles
    them in `load_state_dict`. After this function it unpickles only what was pickled here.

    Raises:
        CheckpointError: an entry holds more than tensors, plain values and Transformer Engine's recipes.
    """
    return {
        key: _repickled(value, f"{where}: {key}") if "_extra_state" in key else value for key, value in state.items()
    }


def _repickled(value: Any, where: str) -> Any:
    if isinstance(value, io.BytesIO):
        value.seek(0)
        again = io.BytesIO()
        torch.save(load_object(value, where), again)
        again.seek(0)
        return again
    if isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.numel():
        scales = _unpickled(value.detach().cpu().numpy().tobytes(), where)
        return torch.frombuffer(bytearray(pickle.dumps(scales)), dtype=torch.uint8).to(value.device)
    if value is None or isinstance(value, torch.Tensor):
        return value
    raise CheckpointError(f"{where}: holds a {type(value).__name__}, which is not loaded; do not use this checkpoint")


def _unpickled(data: bytes, where: str) -> Any:
    try:
        return _ScalesUnpickler(io.BytesIO(data)).load()
    except CheckpointError as refused:
        raise CheckpointError(f"{where}: {refused}") from None
    except pickle.UnpicklingError as refused:
        raise CheckpointError(
            f"{where}: damaged, or holds more than FP8 scales ({_named(refused)}); it is not loaded; do not use this "
            "checkpoint"
        ) from None
    except Exception as problem:  # damaged instructions of pickle can raise anything
        reason = f"{type(problem).__name__}: {problem!s:.100}"
        raise CheckpointError(f"{where}: damaged ({reason}); restore it from a copy") from None


class _ScalesUnpickler(pickle._Unpickler):
    """Unpickles tensors, plain values and Transformer Engine's recipes. In Python, not C: see `metadata_pickle.py`."""

    def find_class(self, module: str, name: str) -> Any:
        """The object of one of the few names that FP8 scales need."""
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module == _TE and name in _FP8_RECIPES:
            return super().find_class(module, name)
        raise CheckpointError(
            f"names {module}.{name}"[:200]
            + ", which FP8 scales do not need; it is not loaded; do not use this checkpoint"
        )


def _storage(data: bytes) -> Any:
    """torch.storage._load_from_bytes, restricted to plain values. (A pickled storage is not a zip archive.)"""
    with plain_values_only():
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): dict,
}
