"""Token log-probs from hidden states and the output weight: the logits exist only a tile at a time, in fp32.

The vocabulary is walked in blocks, and each block over chunks of tokens. Forward, a block's statistics are joined into
the running ones as another rank's would be. Backward, a tile is computed again, turned into its gradient where it lies,
and multiplied out: a block's weight gradient is summed over all tokens in fp32 before it is rounded once, and no fp32
copy of the whole weight gradient is needed, as it would be if tokens were walked outside and the vocabulary inside.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels
from megatron_octo.ops.logits import IGNORE_INDEX, check_targets, inverse_temperature, results_of
from megatron_octo.ops.plain import accumulation_dtype
from megatron_octo.ops.record import TokenLogProbs
from megatron_octo.ops.shard import VocabShard, join_stats, joined

CHUNK_TOKENS = 4096
VOCABULARY_BLOCK = 8192
VOCABULARY_BLOCK_CUDA = 2048
"""A tile of 34 MB, so that it may still be in a GPU's cache when it is read. At 8,192 tokens, hidden 4,096, vocabulary
131,072 and bf16 it makes the forward and backward pass 1.29 GB beside the inputs, 1.07 of them the weight's gradient;
8,192 would make it 1.54."""


def linear_token_log_probs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_T: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    return_entropy: bool = False,
    ignore_index: int = IGNORE_INDEX,
    shard: VocabShard | None = None,
    reduce_hidden_grad: bool = True,
    skip_ignored: bool = True,
    chunk_tokens: int = CHUNK_TOKENS,
    vocabulary_block: int | None = None,
) -> TokenLogProbs:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), and on request the entropy.

    Differentiable in hidden states and weight through all three results, together or alone; once. The same results as
    `token_log_probs` of the logits, which are never held as a whole: beside the gradients, extra memory is one fp32
    tile of chunk_tokens x vocabulary_block, and in fp32 a block of the weight's gradient and the hidden states'. Tied
    weights are given as any other.

    Args:
        hidden_TH: (tokens, hidden), fp32, bf16, fp16 or fp64.
        weight_VH: (vocabulary of this rank, hidden), of the same dtype.
        targets_T: (tokens,) int64, in the numbering of the whole vocabulary.
        ignore_index: tokens with this target give 0 everywhere and no gradient, whatever their hidden states hold.
        skip_ignored: leave those tokens out of all products. On a GPU, finding them waits for the device once; where
            every token counts, False saves that.
        shard: this rank's rows of the weight, where the vocabulary is split over a group; the hidden states are then
            the same on all its ranks.
        reduce_hidden_grad: with `shard`, sum the hidden states' gradient over the group. False where the caller does.

    Raises:
        OperatorError: shapes, dtypes, a temperature or sizes that do not fit.
    """
    if hidden_TH.dim() != 2 or weight_VH.dim() != 2 or hidden_TH.size(1) != weight_VH.size(1):
        raise OperatorError(
            f"hidden of shape {list(hidden_TH.shape)} and weight of shape {list(weight_VH.shape)}: give "
            "(tokens, hidden) and (vocabulary, hidden)"
        )
    if hidden_TH.dtype != weight_VH.dtype or not hidden_TH.is_floating_point():
        raise OperatorError(f"hidden is {hidden_TH.dtype} and weight {weight_VH.dtype}: give one floating dtype")
    if vocabulary_block is None:
        vocabulary_block = VOCABULARY_BLOCK_CUDA if hidden_TH.is_cuda else VOCABULARY_BLOCK
    if chunk_tokens < 1 or vocabulary_block < 1:
        raise OperatorError(f"chunk_tokens = {chunk_tokens}, vocabulary_block = {vocabulary_block}: give 1 or more")
    check_targets(targets_T, hidden_TH)
    columns, first = (shard.size, shard.first) if shard is not None else (weight_VH.size(0), 0)
    if columns > weight_VH.size(0):
        raise OperatorError(
            f"shard.size = {columns}, and the weight has {weight_VH.size(0)} rows; give a size that fits"
        )
    scale_T = inverse_temperature(temperature, hidden_TH)
    work = _Work(
        columns,
        first,
        ignore_index,
        return_entropy,
        shard,
        reduce_hidden_grad,
        chunk_tokens,
        vocabulary_block,
        may_ignore=not skip_ignored,
    )
    kept_K = (targets_T != ignore_index).nonzero()[:, 0] if skip_ignored else targets_T
    if kept_K.numel() == targets_T.numel():
        results = _LinearTokenLogProbs.apply(hidden_TH, weight_VH, targets_T, scale_T, work)  # type: ignore[no-untyped-call]
    else:
        of_kept = _LinearTokenLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden_TH[kept_K], weight_VH, targets_T[kept_K], scale_T[kept_K], work
        )
        zeros_T = scale_T.new_zeros(targets_T.shape)
        results = tuple(zeros_T.index_copy(0, kept_K, result_K) for result_K in of_kept)
    return TokenLogProbs(results[0], results[1], results[2] if return_entropy else None)


@dataclass(frozen=True)
class _Work:
    """What is computed, and in which pieces."""

    columns: int
    first: int
    ignore_index: int
    with_entropy: bool
    shard: VocabShard | None
    reduce_hidden_grad: bool
    chunk_tokens: int
    vocabulary_block: int
    may_ignore: bool
    """Whether there may be tokens of the ignore index among those given."""

    def blocks(self) -> Iterator[slice]:
        """Runs of the weight's rows."""
        for start in range(0, self.columns, self.vocabulary_block):
            yield slice(start, min(start + self.vocabulary_block, self.columns))

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Runs of tokens."""
        for start in range(0, tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, tokens))


class _Products:
    """Matrix products with fp32 results, whatever the weights' dtype.

    The hardware takes 16-bit factors and sums in fp32: on CUDA through torch, on a CPU that multiplies bf16 through
    `kernels.bf16_product`. On other CPUs factors are widened first: the hidden states once, the weight a block at a
    time.
    """

    def __init__(self, hidden_TH: torch.Tensor, tile_values: int) -> None:
        is_16_bit = hidden_TH.dtype in (torch.bfloat16, torch.float16)
        self.by_kernel = (
            hidden_TH.device.type == "cpu"
            and hidden_TH.dtype == torch.bfloat16
            and hidden_TH.size(1) > 0
            and hidden_TH.size(1) % 2 == 0
            and kernels.has_bf16_product()
        )
        self.takes_16_bits = is_16_bit and (hidden_TH.is_cuda or self.by_kernel)
        self.narrow = hidden_TH.dtype
        self.dtype = accumulation_dtype(hidden_TH.dtype)
        self.hidden_TH = self.factor(hidden_TH)
        self.tile = torch.empty(tile_values, dtype=self.dtype, device=hidden_TH.device)
        self.narrow_tile: torch.Tensor | None = None

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """A factor as the products take it."""
        return _rows_contiguous(x) if self.takes_16_bits else x.to(self.dtype)

    def logits(self, rows: slice, weight_BH: torch.Tensor) -> torch.Tensor:
        """A tile of logits, in the one buffer that all tiles share."""
        hidden_CH = self.hidden_TH[rows]
        tile_CB = _part(self.tile, hidden_CH.size(0), weight_BH.size(0))
        if self.by_kernel:
            kernels.bf16_product(hidden_CH, weight_BH, tile_CB, b_is_transposed=True)
            return tile_CB
        if self.takes_16_bits:
            return torch.mm(hidden_CH, weight_BH.t(), out_dtype=self.dtype, out=tile_CB)
        return torch.mm(hidden_CH, weight_BH.t(), out=tile_CB)

    def gradient_of(self, tile_CB: torch.Tensor) -> torch.Tensor:
        """Where the gradient of a tile goes: over the tile, or to 16 bits where the products take those."""
        if not self.takes_16_bits:
            return tile_CB
        if self.narrow_tile is None:
            self.narrow_tile = torch.empty_like(self.tile, dtype=self.narrow)
        return _part(self.narrow_tile, *tile_CB.shape)

    @property
    def on_gpu_in_16_bits(self) -> bool:
        """Whether factors are the caller's own tensors, beside which there is no room for copies."""
        return self.takes_16_bits and not self.by_kernel

    def leave_out(self, ignored_T: torch.Tensor) -> None:
        """Zero the hidden states of ignored tokens, in a copy: their gradient is 0, and 0 times NaN is NaN."""
        is_eager_cpu = ignored_T.device.type == "cpu" and not torch.compiler.is_compiling()
        if not is_eager_cpu or bool(ignored_T.any()):
            self.hidden_TH = self.hidden_TH.masked_fill(ignored_T[:, None], 0.0)

    def hidden_without(self, rows: slice, ignored_T: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Hidden states of some tokens with 0 for ignored ones, by columns, in the memory of the tile.

        For when the tile has become its gradient. A copy of all would take the memory that the linear form saves.
        """
        hidden_CH, ignored_C1 = self.hidden_TH[rows], ignored_T[rows, None]
        if torch.compiler.is_compiling():
            yield slice(None), hidden_CH.masked_fill(ignored_C1, 0.0)
            return
        memory, zero = self.tile.view(self.narrow), hidden_CH.new_zeros(())
        width = memory.numel() // max(hidden_CH.size(0), 1)
        for start in range(0, hidden_CH.size(1), width):
            part_CX = hidden_CH[:, start : start + width]
            clean_CX = _part(memory, *part_CX.shape)
            torch.where(ignored_C1, zero, part_CX, out=clean_CX)
            yield slice(start, start + width), clean_CX

    def add(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """total += a @ b."""
        if not self.takes_16_bits:
            total.addmm_(a, b)
        elif not self.by_kernel and torch.compiler.is_compiling():  # to which addmm's out_dtype is unknown
            total.add_(torch.mm(a, b, out_dtype=self.dtype))
        elif not self.by_kernel:
            torch.addmm(total, a, b, out_dtype=self.dtype, out=total)
        elif a.size(1) % 64 == 0:  # oneDNN compiles for every new depth and keeps it: not for those of odd last chunks
            kernels.bf16_product(_rows_contiguous(a), b, total, add=True)
        else:
            total.addmm_(a.to(self.dtype), b.to(self.dtype))


def _part(buffer: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The front of a buffer, as a matrix."""
    return buffer[: rows * columns].view(rows, columns)


def _rows_contiguous(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


class _LinearTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_T: torch.Tensor,
        scale_T: torch.Tensor,
        work: _Work,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = hidden_TH.size(0)
        products = _Products(hidden_TH, min(tokens, work.chunk_tokens) * min(work.columns, work.vocabulary_block))
        nothing_4T = torch.zeros(4, tokens, dtype=products.dtype, device=hidden_TH.device)
        nothing_4T[0].fill_(-torch.inf)
        nothing_4T[3].fill_(-torch.inf)
        stats_of_blocks = [nothing_4T]
        for block in work.blocks():
            weight_BH = products.factor(weight_VH[block])
            stats_of_chunks = []
            for rows in work.chunks(tokens):
                tile_CB = products.logits(rows, weight_BH)
                stats_of_chunks.append(
                    kernels.token_stats(
                        tile_CB,
                        targets_T[rows],
                        scale_T[rows],
                        tile_CB.size(1),
                        work.first + block.start,
                        work.ignore_index,
                        work.with_entropy,
                    )
                )
            stats_of_blocks.append(torch.cat(stats_of_chunks, dim=1) if stats_of_chunks else nothing_4T)
        stats_4T = joined(torch.stack(stats_of_blocks), scale_T)
        if work.shard is not None:
            stats_4T = join_stats(stats_4T, scale_T, work.shard.group)
        log_probs_T, log_sum_exp_T, entropy_T, log_sum_T = results_of(stats_4T, scale_T, targets_T == work.ignore_index)
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(hidden_TH, weight_VH, targets_T, scale_T, stats_4T[0], log_sum_T, entropy_T)
            ctx.work = work
        if not work.with_entropy:
            ctx.mark_non_differentiable(entropy_T)
        return log_probs_T, log_sum_exp_T, entropy_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, targets_T, scale_T, maximum_T, log_sum_T, entropy_T = ctx.saved_tensors
        work: _Work = ctx.work
        grad_log_probs_T, grad_lse_T, grad_entropy_T = grads
        if not work.with_entropy:
            entropy_T = grad_entropy_T = torch.zeros_like(grad_log_probs_T)
        rows_6T = torch.stack([maximum_T, log_sum_T, entropy_T, grad_log_probs_T, grad_lse_T, grad_entropy_T])
        of_rows = (targets_T, scale_T, rows_6T)
        grad_hidden_TH, grad_weight_VH = _gradients(work, hidden_TH, weight_VH, of_rows, *ctx.needs_input_grad[:2])
        if grad_hidden_TH is not None:
            if work.shard is not None and work.reduce_hidden_grad:
                dist.all_reduce(grad_hidden_TH, group=work.shard.group)
            grad_hidden_TH = grad_hidden_TH.to(hidden_TH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None


def _gradients(
    work: _Work,
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    of_rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the hidden states, in the dtype of sums, and of the weight, in its own.

    A function of its own: what it needs on the way is gone before the first of them is rounded into another copy.
    """
    targets_T, scale_T, rows_6T = of_rows
    tokens = hidden_TH.size(0)
    products = _Products(hidden_TH, min(tokens, work.chunk_tokens) * min(work.columns, work.vocabulary_block))
    ignored_T = targets_T == work.ignore_index if work.may_ignore else None
    if ignored_T is not None and not products.on_gpu_in_16_bits:
        products.leave_out(ignored_T)
    grad_hidden_TH = (
        torch.zeros(hidden_TH.shape, dtype=products.dtype, device=hidden_TH.device) if wants_hidden else None
    )
    grad_weight_VH = torch.empty_like(weight_VH) if wants_weight else None
    # of all tokens in one product, which oneDNN sums in fp32 and rounds once: no fp32 block is needed
    at_once = products.by_kernel and 0 < tokens <= work.chunk_tokens
    of_block_BH = None
    if grad_weight_VH is not None:
        grad_weight_VH[work.columns :].zero_()  # padding
        if not at_once:
            largest = (min(work.columns, work.vocabulary_block), weight_VH.size(1))
            of_block_BH = torch.empty(largest, dtype=products.dtype, device=weight_VH.device)
    for block in work.blocks():
        weight_BH = products.factor(weight_VH[block])
        total_BH = of_block_BH[: weight_BH.size(0)].zero_() if of_block_BH is not None else None
        for rows in work.chunks(tokens):
            tile_CB = products.logits(rows, weight_BH)
            grad_CB = products.gradient_of(tile_CB)
            kernels.token_grad(
                tile_CB,
                targets_T[rows],
                scale_T[rows],
                rows_6T[:, rows].contiguous(),
                tile_CB.size(1),
                work.first + block.start,
                work.ignore_index,
                grad_CB,
            )
            if grad_hidden_TH is not None:
                products.add(grad_hidden_TH[rows], grad_CB, weight_BH)
            if total_BH is not None and ignored_T is not None and products.on_gpu_in_16_bits:
                for columns, clean_CX in products.hidden_without(rows, ignored_T):
                    products.add(total_BH[:, columns], grad_CB.t(), clean_CX)
            elif total_BH is not None:
                products.add(total_BH, grad_CB.t(), products.hidden_TH[rows])
            elif grad_weight_VH is not None:
                torch.mm(grad_CB.t(), products.hidden_TH[rows], out=grad_weight_VH[block])
        if grad_weight_VH is not None and total_BH is not None:
            grad_weight_VH[block] = total_BH
    if grad_hidden_TH is not None and ignored_T is not None:
        grad_hidden_TH.masked_fill_(ignored_T[:, None], 0.0)  # a weight that is not finite made them NaN
    return grad_hidden_TH, grad_weight_VH
