"""Dispatch of the row kernels: to the compiled library (CPU, CUDA) if it takes the tensors, else to plain PyTorch."""

import os
import warnings
from functools import cache
from pathlib import Path

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.ops import plain

LIBRARY = Path(__file__).with_name("_C.so")
VERSION = 2
"""Interface version of the operators (csrc/cpu.cpp). An older library's results would be misread, so it is refused."""
_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_library() -> bool:
    """Load the compiled operators, once. Warns, once, if they are not built.

    Raises:
        RuntimeSetupError: the library cannot be loaded, or is built from older sources.
    """
    if os.environ.get("OCTO_OPS") == "plain":
        return False
    if not LIBRARY.is_file():
        warnings.warn(
            "token operators: not compiled, plain PyTorch is used instead (slower, more memory); "
            "`python setup.py build_ext --inplace` builds them",
            stacklevel=3,
        )
        return False
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise RuntimeSetupError(
            f"{LIBRARY} cannot be loaded ({error}); rebuild it with `python setup.py build_ext --inplace`, "
            "or set OCTO_OPS=plain"
        ) from None
    found = torch.ops.octo.version() if hasattr(torch.ops.octo, "version") else 1
    if found != VERSION:
        raise RuntimeSetupError(
            f"{LIBRARY} has operators of version {found}, and version {VERSION} is needed; rebuild it with `python "
            "setup.py build_ext --inplace`, or set OCTO_OPS=plain"
        )
    _register_fakes()
    return True


def _register_fakes() -> None:
    """Tell torch.compile the shapes and dtypes of the results."""

    @torch.library.register_fake("octo::token_stats")
    def token_stats(
        logits: torch.Tensor,
        targets: torch.Tensor,
        inverse_temperature: torch.Tensor,
        columns: int,
        first: int,
        ignore_index: int,
        entropy: bool,
    ) -> torch.Tensor:
        return logits.new_empty((4, logits.size(0)), dtype=torch.float32)

    @torch.library.register_fake("octo::token_grad")
    def token_grad(
        logits: torch.Tensor,
        targets: torch.Tensor,
        inverse_temperature: torch.Tensor,
        rows: torch.Tensor,
        columns: int,
        first: int,
        ignore_index: int,
        out: torch.Tensor,
    ) -> None:
        return None

    @torch.library.register_fake("octo::bf16_product")
    def bf16_product(a: torch.Tensor, b: torch.Tensor, b_is_transposed: bool, add: bool, out: torch.Tensor) -> None:
        return None


def is_compiled_for(logits_TV: torch.Tensor) -> bool:
    """Whether the compiled kernels take these logits."""
    if logits_TV.dtype not in _COMPILED_DTYPES or logits_TV.device.type not in ("cpu", "cuda"):
        return False
    return bool(_has_kernels(logits_TV.device.type))


@torch.compiler.assume_constant_result  # torch.compile cannot trace the file system
def _has_kernels(device_type: str) -> bool:
    return has_library() and (device_type == "cpu" or has_cuda_kernels())


@cache
def has_cuda_kernels() -> bool:
    """Whether the library was built with a CUDA compiler."""
    return has_library() and bool(torch._C._dispatch_has_kernel_for_dispatch_key("octo::token_stats", "CUDA"))


@torch.compiler.assume_constant_result
def has_bf16_product() -> bool:
    """Whether `bf16_product` works here: the CPU has bf16 arithmetic, and torch exports oneDNN's micro-kernels."""
    return bool(torch.backends.mkldnn.enabled) and _has_bf16_product()


@cache
def _has_bf16_product() -> bool:
    if not has_library() or not torch.backends.mkldnn.is_available() or not torch.ops.octo.has_bf16_product():
        return False
    one = torch.ones(2, 2, dtype=torch.bfloat16)
    try:
        bf16_product(one, one, torch.empty(2, 2), b_is_transposed=True)
    except RuntimeError:  # oneDNN is limited to an older instruction set (ONEDNN_MAX_CPU_ISA)
        return False
    return True


def bf16_product(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, b_is_transposed: bool = False, add: bool = False
) -> None:
    """out = a @ b with fp32 sums and results, or out += a @ b with `add`.

    Args:
        a: (m, k) bf16 on the CPU, k even. Rows are contiguous, as in b and out.
        b: (k, n) bf16, or (n, k) with `b_is_transposed`.
        out: (m, n) fp32.
    """
    torch.ops.octo.bf16_product(a, b, b_is_transposed, add, out)
    _mark_as_written(out)


def token_stats(
    logits_TV: torch.Tensor,
    targets_T: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    columns: int,
    first: int,
    ignore_index: int,
    entropy: bool,
) -> torch.Tensor:
    """`plain.token_stats`, by the fastest implementation available."""
    arguments = (targets_T, inverse_temperature_T, columns, first, ignore_index, entropy)
    if not is_compiled_for(logits_TV):
        return plain.token_stats(logits_TV, *arguments)
    stats_4T: torch.Tensor = torch.ops.octo.token_stats(_rows_contiguous(logits_TV), *arguments)
    return stats_4T


def token_grad(
    logits_TV: torch.Tensor,
    targets_T: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    rows_6T: torch.Tensor,
    columns: int,
    first: int,
    ignore_index: int,
    out_TV: torch.Tensor,
) -> None:
    """`plain.token_grad`, by the fastest implementation available."""
    arguments = (targets_T, inverse_temperature_T, rows_6T, columns, first, ignore_index, out_TV)
    if is_compiled_for(logits_TV):
        torch.ops.octo.token_grad(_rows_contiguous(logits_TV), *arguments)
        _mark_as_written(out_TV)
    else:
        plain.token_grad(logits_TV, *arguments)


def _mark_as_written(out: torch.Tensor) -> None:
    """Raise autograd's version counter, which stable-ABI operators do not, so that stale saved tensors are detected."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


def _rows_contiguous(logits_TV: torch.Tensor) -> torch.Tensor:
    """The logits with contiguous rows, which the kernels need. The distance between rows may be any."""
    return logits_TV if logits_TV.stride(1) == 1 or logits_TV.size(1) <= 1 else logits_TV.contiguous()
