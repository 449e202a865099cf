"""The CPU runtime: what Megatron-Core asks of `torch.cuda`, answered on a machine that has none.

Megatron-Core names CUDA in some 500 places, though most of what it does there (collectives, pipelines, sharded
optimizers, distributed checkpoints) is as right on gloo and main memory. `install_cpu_runtime` replaces those
names in this process: devices called `cuda` are the CPU, streams and events are empty, the generator is the
CPU's. `torch.cuda.is_available()` stays False, so code that asks is told the truth.

This is the one place where that happens. `megatron_octo.runtime.device.setup_device` calls it, only where there
is no CUDA, and says so once.
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
    """Answer for `torch.cuda` in this process. Safe to call again.

    Raises:
        RuntimeError: there is a CUDA device, for which this would be wrong.
    """
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU runtime is for machines with no CUDA device, and this one has one")
    # Imported while torch is still untouched, since the import loads torch._dynamo.
    from megatron.core.tensor_parallel import random as megatron_random
    from torch.utils._device import _device_constructors

    # torch makes this table of factories at the first `with torch.device(...)`. Made after the replacement below it
    # would hold the substitutes, and "meta" would be ignored from then on: transformers then loads models with
    # uninitialised RoPE frequencies
    _device_constructors()
    _replace_devices()
    _replace_tensor_methods()
    _replace_cuda_module()
    # Megatron binds these names at import and goes to torch's C module from them
    megatron_random._set_cuda_rng_state = _set_rng_state
    megatron_random._get_cuda_rng_state = _get_rng_state
    megatron_random._lazy_call = torch.cuda._lazy_call
    _installed = True


def to_cpu(device: Any) -> Any:
    """The device to use for one that was asked for: any CUDA device, or an index, is the CPU."""
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
        if kwargs.get("pin_memory"):  # pinned memory is a matter of CUDA's driver
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
            # Megatron's distributed optimizer accepts parameters by this name
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
    """Work is done when its call returns, so a stream has nothing to order or to wait for."""

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
    """An event that has happened already."""

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


# torch._dynamo keeps a table of torch's functions by object and refuses one object under two names, so each
# name is answered by a function of its own.
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
    # The CPU's generator itself: torch.manual_seed would call back into torch.cuda and recurse.
    torch.default_generator.manual_seed(int(seed))


def _replace_cuda_module() -> None:
    answers: dict[str, Any] = {
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
        answers[name] = _nothing()
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        answers[name] = _peak_memory()
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.random.get_rng_state = _get_rng_state
    torch.cuda.random.set_rng_state = _set_rng_state
    for name in ("range_push", "range_pop", "mark"):
        setattr(torch.cuda.nvtx, name, _nothing())
