"""The CPU runtime: replacements for the parts of `torch.cuda` that Megatron-Core uses, for machines without CUDA.

Megatron-Core names CUDA in some 500 places, although most of what it does there (collectives, pipelines, sharded
optimizers, distributed checkpoints) works equally well with gloo and main memory. `install_cpu_runtime` replaces those
names in this process: a device named `cuda` is the CPU, streams and events do nothing, and the generator is the CPU's.
`torch.cuda.is_available()` stays False, so code that asks gets the true answer.

Nothing else replaces these names. `megatron_octo.runtime.device.setup_device` is the only caller, on machines without
CUDA, and announces it once.
"""

import contextlib
import functools
import resource
from collections.abc import Callable, Iterator
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor", "as_tensor", "zeros", "ones", "empty", "full", "arange", "linspace", "rand", "randn", "randint",
    "randperm", "eye", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "empty_strided",
)  # fmt: skip
_installed = False


def is_installed() -> bool:
    """Whether this process runs on the CPU runtime."""
    return _installed


def install_cpu_runtime() -> None:
    """Replace `torch.cuda` in this process. Safe to call again.

    Raises:
        RuntimeError: there is a CUDA device.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU runtime is for machines without a CUDA device, and this machine has one")
    # imported before torch is changed, since the import loads torch._dynamo
    from megatron.core.tensor_parallel import random as megatron_random
    from torch.utils._device import _device_constructors

    # torch makes this table of factories at the first `with torch.device(...)`. If it were made after the replacement
    # below, it would hold the substitutes, "meta" would be ignored from then on, and transformers would load models
    # with uninitialised RoPE frequencies
    _device_constructors()
    _replace_devices()
    _replace_tensor_methods()
    _replace_cuda_module()
    # Megatron binds these names at import, and they call torch's C module
    megatron_random._set_cuda_rng_state = _set_rng_state
    megatron_random._get_cuda_rng_state = _get_rng_state
    megatron_random._lazy_call = torch.cuda._lazy_call
    _installed = True


def to_cpu(device: Any) -> Any:
    """The device to use in place of a requested one: the CPU for any CUDA device or index."""
    if isinstance(device, bool):
        return device
    if isinstance(device, int):
        return _CPU
    if isinstance(device, str) and device.startswith("cuda"):
        return _CPU
    if isinstance(device, torch.device) and device.type == "cuda":
        return _CPU
    return device


def _replace_devices() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _with_cpu_device(getattr(torch, name)))


def _with_cpu_device(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if (device := kwargs.get("device")) is not None:
            kwargs["device"] = to_cpu(device)
        if kwargs.get("pin_memory"):  # pinned memory needs CUDA's driver
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return on_cpu


def _replace_tensor_methods() -> None:
    original_to, original_type = torch.Tensor.to, torch.Tensor.type

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and not isinstance(args[0], torch.dtype | torch.Tensor):
            args = (to_cpu(args[0]), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = to_cpu(kwargs["device"])
        return original_to(self, *args, **kwargs)

    def cuda(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            # Megatron's distributed optimizer only accepts parameters of types with this name
            return original_type(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.")
        return original_type(self, dtype, *args, **kwargs)

    def record_stream(self: torch.Tensor, stream: Any) -> None:
        del self, stream

    def pin_memory(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self

    def module_cuda(self: torch.nn.Module, *_: Any, **__: Any) -> torch.nn.Module:
        return self

    for name, method in {
        "to": to, "cuda": cuda, "type": type_, "record_stream": record_stream, "pin_memory": pin_memory,
    }.items():  # fmt: skip
        setattr(torch.Tensor, name, method)
    torch.nn.Module.cuda = module_cuda  # type: ignore[assignment,method-assign]


class Stream:
    """A stream that does nothing: on the CPU, work is complete when its call returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True


class Event:
    """An event that has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Any) -> float:
        del end
        return 0.0


_STREAM = Stream()


# torch._dynamo keeps a table of torch's functions by object and refuses one object under two names, so each name gets a
# function of its own
def _peak_memory() -> Callable[..., int]:
    def peak_resident_bytes(*_: Any, **__: Any) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return peak_resident_bytes


def _nothing() -> Callable[..., None]:
    def nothing(*_: Any, **__: Any) -> None: ...

    return nothing


def _no_context() -> Callable[..., Any]:
    @contextlib.contextmanager
    def no_context(*_: Any, **__: Any) -> Iterator[None]:
        yield

    return no_context


def _set_rng_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(new_state)


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _manual_seed(seed: int) -> None:
    # the CPU's generator itself: torch.manual_seed would call torch.cuda and recurse
    torch.default_generator.manual_seed(int(seed))


def _replace_cuda_module() -> None:
    replacements: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "device": _no_context(),
        "stream": _no_context(),
        "current_stream": lambda *_: _STREAM,
        "default_stream": lambda *_: _STREAM,
        "Stream": Stream,
        "Event": Event,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
        "manual_seed": _manual_seed,
        "_lazy_call": lambda call, **_: call(),
    }
    for name in ("set_device", "set_stream", "synchronize", "empty_cache", "ipc_collect", "_lazy_init",
                 "reset_peak_memory_stats", "manual_seed_all"):  # fmt: skip
        replacements[name] = _nothing()
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        replacements[name] = _peak_memory()
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.random.get_rng_state = _get_rng_state
    torch.cuda.random.set_rng_state = _set_rng_state
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, _nothing())
