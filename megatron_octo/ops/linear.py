"""Token log-probs from hidden states and the output weight. Only one tile of logits exists at a time, in fp32.

The outer loop runs over blocks of the vocabulary, the inner loop over chunks of tokens. Forward, the statistics of a
block are merged with those of the others, as shards of ranks are. Backward, each tile is recomputed, turned into its
gradient in place, and multiplied out. With this order of loops a block's weight gradient is summed over all tokens in
fp32 and rounded once; the reverse order would need an fp32 copy of the whole weight gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels
from megatron_octo.ops.logits import (
    IGNORE_INDEX,
    TokenLogProbs,
    check_targets,
    inverse_temperature,
    results_from_stats,
)
from megatron_octo.ops.products import Products
from megatron_octo.ops.shard import VocabShard, all_reduce_stats, merge_stats

CHUNK_TOKENS = 4096
VOCABULARY_BLOCK = 8192
VOCABULARY_BLOCK_CUDA = 2048
"""A tile of 34 MB, which may still be in a GPU's cache when it is read. At 8,192 tokens, hidden 4,096, vocabulary
131,072 and bf16, forward and backward then take 1.29 GB beyond the inputs, of which the weight's gradient is 1.07 GB;
with blocks of 8,192 they would take 1.54 GB."""


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

    Gradients flow to hidden states and weight through all three results, together or alone, but only once. The results
    equal those of `token_log_probs` on the logits, which never exist as a whole: beyond the gradients, extra memory is
    one fp32 tile of chunk_tokens x vocabulary_block, and in fp32 a block of the weight's gradient and the hidden
    states' gradient. Tied weights need nothing special.

    Args:
        hidden_TH: (tokens, hidden), fp32, bf16, fp16 or fp64.
        weight_VH: (vocabulary of this rank, hidden), of the same dtype.
        targets_T: (tokens,) int64, in the numbering of the whole vocabulary.
        temperature: as for `token_log_probs`, like `return_entropy`.
        ignore_index: tokens with this target give 0 everywhere and no gradient, whatever their hidden states hold.
        skip_ignored: leave those tokens out of all products. On a GPU this waits for the device once, to find them;
            pass False if every token counts.
        shard: this rank's rows of the weight, if the vocabulary is split over a group. The hidden states must then be
            the same on all its ranks.
        reduce_hidden_grad: with `shard`, sum the hidden states' gradient over the group. False if the caller does.
        chunk_tokens: tokens of a tile.
        vocabulary_block: vocabulary entries of a tile. By default VOCABULARY_BLOCK, on CUDA VOCABULARY_BLOCK_CUDA.

    Raises:
        OperatorError: invalid shapes, dtypes, temperature or sizes.
    """
    # 1. Check the arguments
    _check_factors(hidden_TH, weight_VH)
    check_targets(targets_T, hidden_TH)
    if vocabulary_block is None:
        vocabulary_block = VOCABULARY_BLOCK_CUDA if hidden_TH.is_cuda else VOCABULARY_BLOCK
    if chunk_tokens < 1 or vocabulary_block < 1:
        raise OperatorError(f"chunk_tokens = {chunk_tokens}, vocabulary_block = {vocabulary_block}: give 1 or more")
    columns, first = (shard.size, shard.first) if shard is not None else (weight_VH.size(0), 0)
    if columns > weight_VH.size(0):
        raise OperatorError(
            f"shard.size = {columns}, but the weight has {weight_VH.size(0)} rows; give that many or fewer"
        )
    scale_T = inverse_temperature(temperature, hidden_TH)
    settings = _Settings(
        columns=columns,
        first=first,
        ignore_index=ignore_index,
        with_entropy=return_entropy,
        shard=shard,
        reduce_hidden_grad=reduce_hidden_grad,
        chunk_tokens=chunk_tokens,
        vocabulary_block=vocabulary_block,
        may_ignore=not skip_ignored,
    )
    # 2. Compute the tokens that count
    kept_K = (targets_T != ignore_index).nonzero()[:, 0] if skip_ignored else targets_T
    if kept_K.numel() == targets_T.numel():
        results = _LinearTokenLogProbs.apply(hidden_TH, weight_VH, targets_T, scale_T, settings)  # type: ignore[no-untyped-call]
    else:
        kept_results = _LinearTokenLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden_TH[kept_K], weight_VH, targets_T[kept_K], scale_T[kept_K], settings
        )
        zeros_T = scale_T.new_zeros(targets_T.shape)
        results = tuple(zeros_T.index_copy(0, kept_K, result_K) for result_K in kept_results)
    return TokenLogProbs(results[0], results[1], results[2] if return_entropy else None)


def _check_factors(hidden_TH: torch.Tensor, weight_VH: torch.Tensor) -> None:
    if hidden_TH.dim() != 2 or weight_VH.dim() != 2 or hidden_TH.size(1) != weight_VH.size(1):
        raise OperatorError(
            f"hidden of shape {list(hidden_TH.shape)} and weight of shape {list(weight_VH.shape)}: give "
            "(tokens, hidden) and (vocabulary, hidden)"
        )
    if hidden_TH.dtype != weight_VH.dtype or not hidden_TH.is_floating_point():
        raise OperatorError(f"hidden is {hidden_TH.dtype} and weight {weight_VH.dtype}: give one floating-point dtype")


@dataclass(frozen=True)
class _Settings:
    """Options of one call, and the tiles it is computed in."""

    columns: int
    """Vocabulary entries of this rank; further rows of the weight are padding."""
    first: int
    """Vocabulary index of the weight's first row."""
    ignore_index: int
    with_entropy: bool
    shard: VocabShard | None
    reduce_hidden_grad: bool
    chunk_tokens: int
    vocabulary_block: int
    may_ignore: bool
    """Whether the given tokens may include ignored ones."""

    def blocks(self) -> Iterator[slice]:
        """Yield the blocks of the weight's rows."""
        for start in range(0, self.columns, self.vocabulary_block):
            yield slice(start, min(start + self.vocabulary_block, self.columns))

    def chunks(self, tokens: int) -> Iterator[slice]:
        """Yield the chunks of tokens."""
        for start in range(0, tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, tokens))

    def products(self, hidden_TH: torch.Tensor) -> Products:
        """Set up the products, with a buffer for the largest tile."""
        tile_tokens = min(hidden_TH.size(0), self.chunk_tokens)
        return Products(hidden_TH, tile_tokens * min(self.columns, self.vocabulary_block))


class _LinearTokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_T: torch.Tensor,
        scale_T: torch.Tensor,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        stats_4T = _stats(settings, hidden_TH, weight_VH, targets_T, scale_T)
        if settings.shard is not None:
            stats_4T = all_reduce_stats(stats_4T, scale_T, settings.shard.group)
        ignored_T = targets_T == settings.ignore_index
        log_probs_T, log_sum_exp_T, entropy_T, log_sum_T = results_from_stats(stats_4T, scale_T, ignored_T)
        if any(ctx.needs_input_grad[:2]):
            ctx.save_for_backward(hidden_TH, weight_VH, targets_T, scale_T, stats_4T[0], log_sum_T, entropy_T)
            ctx.settings = settings
        if not settings.with_entropy:
            ctx.mark_non_differentiable(entropy_T)
        return log_probs_T, log_sum_exp_T, entropy_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, targets_T, scale_T, maximum_T, log_sum_T, entropy_T = ctx.saved_tensors
        settings: _Settings = ctx.settings
        grad_log_probs_T, grad_lse_T, grad_entropy_T = grads
        if not settings.with_entropy:
            entropy_T = grad_entropy_T = torch.zeros_like(grad_log_probs_T)
        rows_6T = torch.stack([maximum_T, log_sum_T, entropy_T, grad_log_probs_T, grad_lse_T, grad_entropy_T])
        token_values = (targets_T, scale_T, rows_6T)
        grad_hidden_TH, grad_weight_VH = _gradients(
            settings, hidden_TH, weight_VH, token_values, *ctx.needs_input_grad[:2]
        )
        if grad_hidden_TH is not None:
            if settings.shard is not None and settings.reduce_hidden_grad:
                dist.all_reduce(grad_hidden_TH, group=settings.shard.group)
            grad_hidden_TH = grad_hidden_TH.to(hidden_TH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None


def _stats(
    settings: _Settings,
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_T: torch.Tensor,
    scale_T: torch.Tensor,
) -> torch.Tensor:
    """(4, tokens) statistics over this rank's vocabulary, as `plain.token_stats` returns them."""
    tokens = hidden_TH.size(0)
    products = settings.products(hidden_TH)
    # Statistics of an empty part, so that a rank with only padding has some to merge
    empty_4T = torch.zeros(4, tokens, dtype=products.dtype, device=hidden_TH.device)
    empty_4T[0].fill_(-torch.inf)
    empty_4T[3].fill_(-torch.inf)
    block_stats = [empty_4T]
    for block in settings.blocks():
        weight_BH = products.factor(weight_VH[block])
        chunk_stats = []
        for rows in settings.chunks(tokens):
            tile_CB = products.logits(rows, weight_BH)
            chunk_stats.append(
                kernels.token_stats(
                    tile_CB,
                    targets_T[rows],
                    scale_T[rows],
                    tile_CB.size(1),
                    settings.first + block.start,
                    settings.ignore_index,
                    settings.with_entropy,
                )
            )
        block_stats.append(torch.cat(chunk_stats, dim=1) if chunk_stats else empty_4T)
    return merge_stats(torch.stack(block_stats), scale_T)


def _gradients(
    settings: _Settings,
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    token_values: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of the hidden states, in the dtype of sums, and of the weight, in its own dtype.

    This is a function of its own so that its buffers are freed before the caller rounds the hidden states' gradient.

    Args:
        token_values: targets_T, scale_T and rows_6T (see `plain.token_grad`).
    """
    # 1. Factors and buffers
    targets_T, scale_T, rows_6T = token_values
    tokens = hidden_TH.size(0)
    products = settings.products(hidden_TH)
    ignored_T = targets_T == settings.ignore_index if settings.may_ignore else None
    if ignored_T is not None and not products.avoids_copies:
        products.zero_ignored_hidden(ignored_T)
    grad_hidden_TH = (
        torch.zeros(hidden_TH.shape, dtype=products.dtype, device=hidden_TH.device) if wants_hidden else None
    )
    grad_weight_VH = torch.empty_like(weight_VH) if wants_weight else None
    # A single chunk is one product, which oneDNN sums in fp32 and rounds once, so it needs no fp32 block.
    is_one_product = products.uses_kernel and 0 < tokens <= settings.chunk_tokens
    block_buffer_BH = None
    if grad_weight_VH is not None:
        grad_weight_VH[settings.columns :].zero_()  # padding
        if not is_one_product:
            largest = (min(settings.columns, settings.vocabulary_block), weight_VH.size(1))
            block_buffer_BH = torch.empty(largest, dtype=products.dtype, device=weight_VH.device)
    for block in settings.blocks():
        weight_BH = products.factor(weight_VH[block])
        block_grad_BH = block_buffer_BH[: weight_BH.size(0)].zero_() if block_buffer_BH is not None else None
        for rows in settings.chunks(tokens):
            # 2. Recompute the tile, and turn it into its gradient
            tile_CB = products.logits(rows, weight_BH)
            grad_CB = products.gradient_tile(tile_CB)
            kernels.token_grad(
                tile_CB,
                targets_T[rows],
                scale_T[rows],
                rows_6T[:, rows].contiguous(),
                tile_CB.size(1),
                settings.first + block.start,
                settings.ignore_index,
                grad_CB,
            )
            # 3. Multiply it out: into the hidden states' gradient, then into the weight's
            if grad_hidden_TH is not None:
                products.add_product(grad_hidden_TH[rows], grad_CB, weight_BH)
            if block_grad_BH is not None and ignored_T is not None and products.avoids_copies:
                for columns, clean_CX in products.hidden_with_zeros(rows, ignored_T):
                    products.add_product(block_grad_BH[:, columns], grad_CB.t(), clean_CX)
            elif block_grad_BH is not None:
                products.add_product(block_grad_BH, grad_CB.t(), products.hidden_TH[rows])
            elif grad_weight_VH is not None:
                torch.mm(grad_CB.t(), products.hidden_TH[rows], out=grad_weight_VH[block])
        # 4. Round the block's weight gradient, once
        if grad_weight_VH is not None and block_grad_BH is not None:
            grad_weight_VH[block] = block_grad_BH
    if grad_hidden_TH is not None and ignored_T is not None:
        grad_hidden_TH.masked_fill_(ignored_T[:, None], 0.0)  # a weight that is not finite makes them NaN
    return grad_hidden_TH, grad_weight_VH
