"""Pickles that do something when they are read: each would make the file `marker`."""

import builtins
import functools
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata


class Calling:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _in_torch_archive(marker: Path) -> Any:
    """torch's own gadget: a storage's bytes are loaded with everything allowed."""
    inner = io.BytesIO()
    torch.save(Calling(os.system, f"touch {marker}"), inner, _use_new_zipfile_serialization=False)
    return Calling(torch.storage._load_from_bytes, inner.getvalue())


def _through_state(marker: Path) -> Any:
    """A harmless class whose state calls."""
    chunk = ChunkStorageMetadata(torch.Size([1]), torch.Size([1]))
    chunk.sizes = Calling(os.system, f"touch {marker}")  # type: ignore[assignment]
    return chunk


def _deep_in_metadata(marker: Path) -> Any:
    return Metadata({}, planner_data={"a": [({"b": Calling(os.system, f"touch {marker}")},)]}, storage_data={})


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda m: Calling(os.system, f"touch {m}"),
    "eval": lambda m: Calling(builtins.eval, f"__import__('os').system('touch {m}')"),
    "exec": lambda m: Calling(builtins.exec, f"open({str(m)!r}, 'w')"),
    "open": lambda m: Calling(builtins.open, str(m), "w"),
    "getattr": lambda m: Calling(getattr, Calling(__import__, "os"), "system"),
    "import": lambda m: Calling(__import__, "antigravity"),
    "subprocess": lambda m: Calling(subprocess.Popen, ["touch", str(m)]),
    "partial": lambda m: Calling(functools.partial(os.system, f"touch {m}")),
    "pathlib": lambda m: Calling(Path.write_text, m, "written"),
    "nested": lambda m: [({"a": Calling(list, [Calling(os.system, f"touch {m}")])},)],
    "pickle": lambda m: Calling(pickle.loads, pickle.dumps(Calling(os.system, f"touch {m}"))),
    "torch.load": _in_torch_archive,
    "torch.hub": lambda m: Calling(torch.hub._check_module_exists, "os"),
    "state": _through_state,
    "deep": _deep_in_metadata,
    "storage": lambda m: Metadata({}, storage_data={"x": _StorageInfo(Calling(os.system, f"touch {m}"), 0, 1)}),  # type: ignore[arg-type]
}
"""Objects pickled by reference or by call: every way that `pickle` itself would follow."""


def dotted(marker: Path) -> bytes:
    """By hand: a name with dots, which pickle follows from attribute to attribute."""
    return (
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x1f"
        b"Metadata.__init__.__globals__xx\x93."
    )  # fmt: skip


def protocol_0(marker: Path) -> bytes:
    """By hand: the oldest protocol."""
    return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()


def instance(marker: Path) -> bytes:
    """By hand: INST, which finds and calls in one instruction."""
    return f"(S'touch {marker}'\nios\nsystem\n.".encode()


BYTES: dict[str, Callable[[Path], bytes]] = {"dotted": dotted, "protocol 0": protocol_0, "INST": instance}


def metadata_bytes(kind: str, marker: Path) -> bytes:
    """A `.metadata` of a kind."""
    return BYTES[kind](marker) if kind in BYTES else pickle.dumps(HOSTILE[kind](marker))
