"""Which implementation of the row kernels serves: the compiled library (CPU, CUDA), or plain PyTorch."""

import os
import warnings
from functools import cache
from pathlib import Path

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.ops import plain

LIBRARY = Path(__file__).with_name("_C.so")
VERSION = 2
"""Of the operators (csrc/cpu.cpp): results of a library of older sources would be taken for something else."""
_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_library() -> bool:
    """Load the compiled operators once. Says so, once, where they are not there."""
    if os.environ.get("OCTO_OPS") == "plain":
        return False
    if not LIBRARY.is_file():
        warnings.warn(
            "token operators: no compiled library, plain PyTorch serves (slower, more memory); "
            "`python setup.py build_ext --inplace` builds it",
            stacklevel=3,
        )
        return False
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise RuntimeSetupError(
            f"{LIBRARY}: cannot be loaded ({error}); build it again with `python setup.py build_ext --inplace`, "
            "or set OCTO_OPS=plain"
        ) from None
    found = torch.ops.octo.version() if hasattr(torch.ops.octo, "version") else 1
    if found != VERSION:
        raise RuntimeSetupError(
            f"{LIBRARY}: its operators are of version {found}, and {VERSION} is needed; build it again with `python "
            "setup.py build_ext --inplace`, or set OCTO_OPS=plain"
        )
    _register_fakes()
    return True


def _register_fakes() -> None:
    """Shapes and dtypes for torch.compile."""

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

    if hasattr(torch.ops.octo, "bf16_product"):  # not in a library that was built before there was one

        @torch.library.register_fake("octo::bf16_product")
        def bf16_product(a: torch.Tensor, b: torch.Tensor, b_is_transposed: bool, add: bool, out: torch.Tensor) -> None:
            return None


def is_compiled_for(logits_TV: torch.Tensor) -> bool:
    """Whether the compiled kernels take these logits."""
    if logits_TV.dtype not in _COMPILED_DTYPES or logits_TV.device.type not in ("cpu", "cuda"):
        return False
    return bool(_has_kernels(logits_TV.device.type))


@torch.compiler.assume_constant_result  # a compiler that traces a file system gets nowhere
def _has_kernels(device_type: str) -> bool:
    return has_library() and (device_type == "cpu" or has_cuda_kernels())


@cache
def has_cuda_kernels() -> bool:
    """Whether the library was built with a CUDA compiler."""
    return has_library() and bool(torch._C._dispatch_has_kernel_for_dispatch_key("octo::token_stats", "CUDA"))


@torch.compiler.assume_constant_result
def has_bf16_product() -> bool:
    """Whether this CPU multiplies bf16 in hardware, and the library can have fp32 results of it (csrc/product.cpp)."""
    return bool(torch.backends.mkldnn.enabled) and _has_bf16_product()


@cache
def _has_bf16_product() -> bool:
    if not has_library() or not hasattr(torch.ops.octo, "has_bf16_product"):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.ops.octo.has_bf16_product():
        return False
    one = torch.ones(2, 2, dtype=torch.bfloat16)
    try:
        bf16_product(one, one, torch.empty(2, 2), b_is_transposed=True)
    except RuntimeError:  # oneDNN is held to an older instruction set (ONEDNN_MAX_CPU_ISA)
        return False
    return True


def bf16_product(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, b_is_transposed: bool = False, add: bool = False
) -> None:
    """out = a @ b with fp32 sums and results, or out += a @ b; b is given as its transpose where `b_is_transposed`.

    Args:
        a: (m, k) bf16 on the CPU, rows contiguous, k even.
        b: (k, n) bf16, or (n, k).
        out: (m, n) fp32.
    """
    torch.ops.octo.bf16_product(a, b, b_is_transposed, add, out)
    _was_written(out)


def token_stats(
    logits_TV: torch.Tensor,
    targets_T: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    columns: int,
    first: int,
    ignore_index: int,
    entropy: bool,
) -> torch.Tensor:
    """As `plain.token_stats`, by the fastest implementation there is."""
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
    """As `plain.token_grad`, by the fastest implementation there is."""
    arguments = (targets_T, inverse_temperature_T, rows_6T, columns, first, ignore_index, out_TV)
    if is_compiled_for(logits_TV):
        torch.ops.octo.token_grad(_rows_contiguous(logits_TV), *arguments)
        _was_written(out_TV)
    else:
        plain.token_grad(logits_TV, *arguments)


def _was_written(out: torch.Tensor) -> None:
    """Tell autograd, which an operator of the stable ABI does not: what needs the old values must not get these."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(out)


def _rows_contiguous(logits_TV: torch.Tensor) -> torch.Tensor:
    """The kernels take any distance between rows, and none within one."""
    return logits_TV if logits_TV.stride(1) == 1 or logits_TV.size(1) <= 1 else logits_TV.contiguous()
