"""Reads the pickle in a checkpoint's `.metadata` without running it.

A pickle is a program: it can name any function that Python can import, and call it. This reader knows only the few
names that occur in torch's and Megatron's metadata, and makes a plain record for each object. It imports no class and
calls no method. `checkpoint_metadata.py` checks every field of the records and then builds torch's classes from them.
"""

import pickle
import struct
from collections.abc import Callable
from typing import Any

import torch

from megatron_octo.errors import CheckpointError

_DTYPES = (
    "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "bool",
)  # fmt: skip
_METADATA, _FILESYSTEM = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_PLANNER, _MEGATRON = "torch.distributed.checkpoint.planner", "megatron.core.dist_checkpointing.strategies.torch"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"

_CLASSES = frozenset(
    {
        (_METADATA, "Metadata"),
        (_METADATA, "TensorStorageMetadata"),
        (_METADATA, "BytesStorageMetadata"),
        (_METADATA, "ChunkStorageMetadata"),
        (_METADATA, "TensorProperties"),
        (_METADATA, "MetadataIndex"),
        (_METADATA, "StorageMeta"),
        (_FILESYSTEM, "_StorageInfo"),
        # the plans of all ranks, which Megatron stores too
        (_PLANNER, "SavePlan"),
        (_PLANNER, "WriteItem"),
        (_PLANNER, "TensorWriteData"),
        (_PLANNER, "BytesIOWriteData"),
        # from older versions of Megatron and torch
        (_MEGATRON, "MCoreMetadata"),
        (_MEGATRON, "MCoreSavePlan"),
        (_SHARDED, "TensorProperties"),
    }
)
"""The classes whose objects become records."""


class Record:
    """An object of one of these classes: the name of the class, and the state of the object."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None


class _Class:
    """A class, by name, before a record of it is made."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Function:
    """The replacement of a function, or of a class that is called."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def _size(values: Any = ()) -> Any:
    if not isinstance(values, tuple):  # a list would be copied, as often as the file asks
        raise _NotMetadataError("it has a shape that is not a tuple")
    return values


def _nothing(*values: Any) -> None:
    """The value of enumerations and paths, which nothing reads."""


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _nothing,
    (_METADATA, "_MEM_FORMAT_ENCODING"): _nothing,
    (_SHARDED, "MEM_FORMAT_ENCODING"): _nothing,
    (_PLANNER, "WriteItemType"): _nothing,
    # the folder that the checkpoint was written to
    ("pathlib", "PosixPath"): _nothing,
    ("pathlib._local", "PosixPath"): _nothing,
}
"""The replacements of the functions that metadata calls."""


def read_pickled_records(data: bytes, where: str) -> Any:
    """The value of a pickle that contains only metadata's classes and plain values (dict, list, tuple, text, number).

    Args:
        where: the file, for messages.

    Raises:
        CheckpointError: it names anything else, is damaged, or is cut short.
    """
    try:
        return _Reader(data).value()
    except _NotMetadataError as refused:
        raise CheckpointError(
            f"{where}: {refused}, which metadata never needs; it is not run; do not use this checkpoint"
        ) from None
    except Exception as problem:  # damaged instructions of pickle can raise anything
        reason = f"{type(problem).__name__}: {problem!s:.100}"
        raise CheckpointError(f"{where}: damaged or cut short ({reason}); restore it from a copy") from None


class _NotMetadataError(Exception):
    """A pickle that needs something that metadata does not need."""


class _Reader:
    """Runs the instructions of pickle that plain values and records need, of protocols 2 to 5.

    Python's own reader is not used: it imports what a file names, and three bytes of a file can make it allocate 64 GB
    (its memo is an array whose length the file sets).
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """Stacks that a MARK has set aside."""
        self.memo: dict[int, Any] = {}

    def value(self) -> Any:
        """The value of the pickle."""
        while (code := self.take(1)[0]) != pickle.STOP[0]:
            if code not in _INSTRUCTIONS:
                raise _NotMetadataError(f"it contains the pickle instruction {chr(code)!a}")
            _INSTRUCTIONS[code](self)
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self.data[self.at : self.at + count]
        if len(taken) != count:
            raise ValueError(f"{count} bytes are expected at {self.at:,}, but there are only {len(self.data):,}")
        self.at += count
        return taken

    def number(self, count: int, signed: bool = False) -> int:
        """A number of `count` bytes."""
        return int.from_bytes(self.take(count), "little", signed=signed)

    def line(self) -> str:
        """Text up to the end of the line."""
        end = self.data.index(b"\n", self.at)
        text = self.take(end - self.at).decode()
        self.at += 1
        return text

    def since_mark(self) -> list[Any]:
        """Everything on the stack since the last MARK."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def push_tuple(self, count: int) -> None:
        taken = tuple(self.stack[-count:])
        if len(taken) != count:
            raise ValueError("a tuple of more values than the stack has")
        self.stack[-count:] = [taken]

    def name(self, module: Any, name: Any) -> None:
        """Put a class, a function or a dtype on the stack."""
        if (module, name) in _CLASSES:
            self.stack.append(_Class(name))
        elif (module, name) in _FUNCTIONS:
            self.stack.append(_Function(_FUNCTIONS[module, name]))
        elif module == "torch" and name in _DTYPES:
            self.stack.append(getattr(torch, name))
        else:
            raise _NotMetadataError(f"it names {module}.{name}"[:200])

    def name_of_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def make(self) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if not isinstance(named, _Class) or arguments != ():
            raise _NotMetadataError("it makes an object of something that is not a class of metadata")
        self.stack.append(Record(named.kind))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise _NotMetadataError("it calls something that is not a function of metadata")
        self.stack.append(function.call(*arguments))

    def fill(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Record):
            raise _NotMetadataError("it sets the state of something that is not a record of metadata")
        self.stack[-1].state = state

    def put(self, items: list[Any]) -> None:
        # hashing nested tuples recurses in C, so deep nesting would crash the process
        if not isinstance(self.stack[-1], dict) or not all(type(key) in (str, int, Record) for key in items[::2]):
            raise _NotMetadataError("it has a mapping whose keys are neither text nor records")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def put_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _NotMetadataError("it appends to something that is not a list")
        self.stack[-1].extend(values)

    def keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]


def _skipping(count: int) -> Callable[[_Reader], None]:
    def skip(reader: _Reader) -> None:
        reader.take(count)

    return skip


def _pushing(value: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    def push(reader: _Reader) -> None:
        made = value(reader)  # first, since it may replace the stack
        reader.stack.append(made)

    return push


_INSTRUCTIONS: dict[int, Callable[[_Reader], None]] = {
    code[0]: run
    for code, run in {
        pickle.PROTO: _skipping(1),
        pickle.FRAME: _skipping(8),
        pickle.NONE: _pushing(lambda r: None),
        pickle.NEWTRUE: _pushing(lambda r: True),
        pickle.NEWFALSE: _pushing(lambda r: False),
        pickle.BININT: _pushing(lambda r: r.number(4, signed=True)),
        pickle.BININT1: _pushing(lambda r: r.number(1)),
        pickle.BININT2: _pushing(lambda r: r.number(2)),
        pickle.LONG1: _pushing(lambda r: r.number(r.number(1), signed=True)),
        pickle.BINFLOAT: _pushing(lambda r: struct.unpack(">d", r.take(8))[0]),
        pickle.SHORT_BINUNICODE: _pushing(lambda r: r.take(r.number(1)).decode("utf-8", "surrogatepass")),
        pickle.BINUNICODE: _pushing(lambda r: r.take(r.number(4)).decode("utf-8", "surrogatepass")),
        pickle.EMPTY_TUPLE: _pushing(lambda r: ()),
        pickle.EMPTY_LIST: _pushing(lambda r: []),
        pickle.EMPTY_DICT: _pushing(lambda r: {}),
        pickle.TUPLE1: lambda r: r.push_tuple(1),
        pickle.TUPLE2: lambda r: r.push_tuple(2),
        pickle.TUPLE3: lambda r: r.push_tuple(3),
        pickle.TUPLE: _pushing(lambda r: tuple(r.since_mark())),
        pickle.MARK: _Reader.mark,
        pickle.APPEND: lambda r: r.extend([r.stack.pop()]),
        pickle.APPENDS: lambda r: r.extend(r.since_mark()),
        pickle.SETITEM: _Reader.put_one,
        pickle.SETITEMS: lambda r: r.put(r.since_mark()),
        pickle.MEMOIZE: lambda r: r.keep(len(r.memo)),
        pickle.BINPUT: lambda r: r.keep(r.number(1)),
        pickle.LONG_BINPUT: lambda r: r.keep(r.number(4)),
        pickle.BINGET: _pushing(lambda r: r.memo[r.number(1)]),
        pickle.LONG_BINGET: _pushing(lambda r: r.memo[r.number(4)]),
        pickle.GLOBAL: lambda r: r.name(r.line(), r.line()),
        pickle.STACK_GLOBAL: _Reader.name_of_stack,
        pickle.NEWOBJ: _Reader.make,
        pickle.REDUCE: _Reader.call,
        pickle.BUILD: _Reader.fill,
    }.items()
}
