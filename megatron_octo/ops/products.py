"""The matrix products of the linear log-probs, with fp32 results whatever the dtype of the weight."""

from collections.abc import Iterator

import torch

from megatron_octo.ops import kernels
from megatron_octo.ops.plain import accumulation_dtype


class Products:
    """Products of hidden states, weight blocks and logit gradients, and the tile buffers they share.

    The hardware multiplies 16-bit factors and sums in fp32: on CUDA through torch, on a CPU with bf16 arithmetic
    through `kernels.bf16_product`. On other CPUs the factors are converted to fp32 first: the hidden states once, the
    weight a block at a time. fp64 stays fp64.
    """

    def __init__(self, hidden_TH: torch.Tensor, tile_values: int) -> None:
        """Take the hidden states, and allocate a tile of `tile_values` logits."""
        is_16_bit = hidden_TH.dtype in (torch.bfloat16, torch.float16)
        self.uses_kernel = (
            hidden_TH.device.type == "cpu"
            and hidden_TH.dtype == torch.bfloat16
            and hidden_TH.size(1) > 0
            and hidden_TH.size(1) % 2 == 0
            and kernels.has_bf16_product()
        )
        self.takes_16_bits = is_16_bit and (hidden_TH.is_cuda or self.uses_kernel)
        self.hidden_dtype = hidden_TH.dtype
        self.dtype = accumulation_dtype(hidden_TH.dtype)
        self.hidden_TH = self.factor(hidden_TH)
        self.tile_buffer = torch.empty(tile_values, dtype=self.dtype, device=hidden_TH.device)
        self.grad_buffer: torch.Tensor | None = None

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """Convert a factor to the form that the products take."""
        return _with_contiguous_rows(x) if self.takes_16_bits else x.to(self.dtype)

    def logits(self, rows: slice, weight_BH: torch.Tensor) -> torch.Tensor:
        """Compute the tile of logits of some tokens and a weight block, in the buffer that all tiles share."""
        hidden_CH = self.hidden_TH[rows]
        tile_CB = _as_matrix(self.tile_buffer, hidden_CH.size(0), weight_BH.size(0))
        if self.uses_kernel:
            kernels.bf16_product(hidden_CH, weight_BH, tile_CB, b_is_transposed=True)
            return tile_CB
        if self.takes_16_bits:
            return torch.mm(hidden_CH, weight_BH.t(), out_dtype=self.dtype, out=tile_CB)
        return torch.mm(hidden_CH, weight_BH.t(), out=tile_CB)

    def gradient_tile(self, tile_CB: torch.Tensor) -> torch.Tensor:
        """Where to write a tile's gradient: over the tile, or into a 16-bit buffer if the products take 16 bits."""
        if not self.takes_16_bits:
            return tile_CB
        if self.grad_buffer is None:
            self.grad_buffer = torch.empty_like(self.tile_buffer, dtype=self.hidden_dtype)
        return _as_matrix(self.grad_buffer, *tile_CB.shape)

    @property
    def avoids_copies(self) -> bool:
        """Whether the factors are the caller's 16-bit tensors on a GPU. A copy would cost the memory to be saved."""
        return self.takes_16_bits and not self.uses_kernel

    def zero_ignored_hidden(self, ignored_T: torch.Tensor) -> None:
        """Copy the hidden states with 0 for ignored tokens: their gradient is 0, and 0 * NaN would be NaN."""
        is_eager_cpu = ignored_T.device.type == "cpu" and not torch.compiler.is_compiling()
        if not is_eager_cpu or bool(ignored_T.any()):
            self.hidden_TH = self.hidden_TH.masked_fill(ignored_T[:, None], 0.0)

    def hidden_with_zeros(self, rows: slice, ignored_T: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield hidden states of some tokens, with 0 for ignored ones, a few columns at a time.

        They are written into the tile's memory, so the tile must no longer be needed. A full copy would cost the memory
        that the linear form saves.
        """
        hidden_CH, ignored_C1 = self.hidden_TH[rows], ignored_T[rows, None]
        if torch.compiler.is_compiling():
            yield slice(None), hidden_CH.masked_fill(ignored_C1, 0.0)
            return
        memory, zero = self.tile_buffer.view(self.hidden_dtype), hidden_CH.new_zeros(())
        width = memory.numel() // max(hidden_CH.size(0), 1)
        for start in range(0, hidden_CH.size(1), width):
            part_CX = hidden_CH[:, start : start + width]
            clean_CX = _as_matrix(memory, *part_CX.shape)
            torch.where(ignored_C1, zero, part_CX, out=clean_CX)
            yield slice(start, start + width), clean_CX

    def add_product(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """total += a @ b."""
        if not self.takes_16_bits:
            total.addmm_(a, b)
        elif not self.uses_kernel and torch.compiler.is_compiling():  # torch.compile does not know addmm's out_dtype
            total.add_(torch.mm(a, b, out_dtype=self.dtype))
        elif not self.uses_kernel:
            torch.addmm(total, a, b, out_dtype=self.dtype, out=total)
        elif a.size(1) % 64 == 0:
            kernels.bf16_product(_with_contiguous_rows(a), b, total, add=True)
        else:  # oneDNN compiles and caches a kernel for every depth, so the odd depths of last chunks are left to torch
            total.addmm_(a.to(self.dtype), b.to(self.dtype))


def _as_matrix(buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The first rows * columns values of a buffer, as a matrix."""
    return buffer[: rows * columns].view(rows, columns)


def _with_contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
