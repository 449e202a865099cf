"""Token log-probs from logits: one read forward, one read and one write backward, no fp32 copy of the logits."""

from typing import Any

import torch

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels
from megatron_octo.ops.plain import accumulation_dtype
from megatron_octo.ops.record import TokenLogProbs
from megatron_octo.ops.shard import VocabShard, join_stats

IGNORE_INDEX = -100
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6
"""Between them 1 / temperature, and its product with any logit up to 1e32, are numbers in fp32."""


def token_log_probs(
    logits_TV: torch.Tensor,
    targets_T: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    return_entropy: bool = False,
    ignore_index: int = IGNORE_INDEX,
    shard: VocabShard | None = None,
    in_place_backward: bool = False,
) -> TokenLogProbs:
    """Log-probability of each target under softmax(logits / temperature), and on request the entropy.

    Differentiable in the logits through all three results, together or alone; once. No synchronisation with the device.

    Args:
        logits_TV: (tokens, vocabulary), fp32, bf16, fp16 or fp64; any strides, any vocabulary size.
        targets_T: (tokens,) int64. One outside the vocabulary that is not `ignore_index` gives -inf.
        temperature: one number, or (tokens,), from LOWEST_TEMPERATURE to HIGHEST_TEMPERATURE. No gradient flows to it.
        return_entropy: the entropy of the temperature-scaled distribution.
        ignore_index: tokens with this target give 0 everywhere, and no gradient.
        shard: this rank's columns, where the vocabulary is split over a group.
        in_place_backward: write the gradient over the logits, which saves its memory. Nothing may read them afterwards;
            autograd refuses where it would itself.

    Raises:
        OperatorError: shapes, dtypes, a temperature or strides that do not fit.
    """
    _check(logits_TV, targets_T)
    if in_place_backward:
        _check_rows(logits_TV)
    scale_T = inverse_temperature(temperature, logits_TV)
    columns, first = (shard.size, shard.first) if shard is not None else (logits_TV.size(1), 0)
    if columns > logits_TV.size(1):
        raise OperatorError(
            f"shard.size = {columns}, and the logits have {logits_TV.size(1)} columns; give a size that fits"
        )
    log_probs_T, log_sum_exp_T, entropy_T = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        logits_TV, targets_T, scale_T, columns, first, ignore_index, return_entropy, shard, in_place_backward
    )
    return TokenLogProbs(log_probs_T, log_sum_exp_T, entropy_T if return_entropy else None)


def inverse_temperature(temperature: float | torch.Tensor, like_TX: torch.Tensor) -> torch.Tensor:
    """(tokens,) of 1 / temperature, in the dtype that sums are taken in.

    Raises:
        OperatorError: a number beyond the limits, or a tensor of another shape. A tensor's values are looked at on the
            CPU; on another device, where that would wait, and under torch.compile, those beyond the limits become NaN,
            and so do the results.
    """
    dtype, tokens = accumulation_dtype(like_TX.dtype), like_TX.size(0)
    if not isinstance(temperature, torch.Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise OperatorError(f"temperature = {temperature!r:.80}: give a number, or a tensor of one for each token")
        if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:  # nor NaN
            raise _beyond(temperature)
        return like_TX.new_full((tokens,), 1.0 / temperature, dtype=dtype)
    if temperature.dim() > 0 and temperature.shape != (tokens,):
        raise OperatorError(
            f"temperature of shape {list(temperature.shape)}: give one number, or one for each of {tokens} tokens"
        )
    if temperature.is_complex() or temperature.dtype == torch.bool:
        raise OperatorError(f"temperature of dtype {temperature.dtype}: give floating numbers")
    values_T = temperature.detach().to(dtype=dtype, device=like_TX.device)
    fits_T = (values_T >= LOWEST_TEMPERATURE) & (values_T <= HIGHEST_TEMPERATURE)
    if type(fits_T) is torch.Tensor and fits_T.device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool(fits_T.all()):
            raise _beyond(float(values_T[~fits_T].flatten()[0]))
    else:
        values_T = torch.where(fits_T, values_T, torch.nan)
    return values_T.reciprocal().expand(tokens).contiguous()


def _beyond(temperature: float) -> OperatorError:
    is_long = isinstance(temperature, int) and temperature.bit_length() > 64
    shown = f"an integer of {int(temperature).bit_length()} bits" if is_long else temperature
    return OperatorError(
        f"temperature = {shown}: it must be above 0, from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}; "
        "for greedy decoding take the likeliest token"
    )


def results_of(
    stats_4T: torch.Tensor, scale_T: torch.Tensor, ignored_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log_probs, log_sum_exp, entropy and the log of the sum, (tokens,) each, from the statistics of whole rows.

    All from differences to the maximum: log_sum_exp alone has lost what a large maximum rounds away.
    """
    maximum_T, sum_T, weighted_T, target_T = stats_4T
    log_sum_T = sum_T.log()
    log_probs_T = (target_T - maximum_T) * scale_T - log_sum_T
    results = (log_probs_T, maximum_T * scale_T + log_sum_T, log_sum_T - weighted_T / sum_T)
    log_probs_T, log_sum_exp_T, entropy_T = (result.masked_fill(ignored_T, 0.0) for result in results)
    return log_probs_T, log_sum_exp_T, entropy_T, log_sum_T


def _check(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> None:
    if logits_TV.dim() != 2 or not logits_TV.is_floating_point():
        raise OperatorError(
            f"logits of shape {list(logits_TV.shape)}, {logits_TV.dtype}: give (tokens, vocabulary), floating"
        )
    check_targets(targets_T, logits_TV)


def _check_rows(logits_TV: torch.Tensor) -> None:
    tokens, stored = logits_TV.shape
    if (stored > 1 and logits_TV.stride(1) != 1) or (tokens > 1 and logits_TV.stride(0) < stored):
        raise OperatorError(
            f"in_place_backward with strides {list(logits_TV.stride())}: the gradient needs rows that are contiguous "
            "and do not overlap; give logits_TV.contiguous(), or leave in_place_backward out"
        )


def check_targets(targets_T: torch.Tensor, like_TX: torch.Tensor) -> None:
    """Refuse targets that are not one int64 a row, on the same device."""
    if targets_T.shape != (like_TX.size(0),) or targets_T.dtype != torch.int64 or targets_T.device != like_TX.device:
        raise OperatorError(
            f"targets of shape {list(targets_T.shape)}, {targets_T.dtype} on {targets_T.device}: give "
            f"({like_TX.size(0)},) int64 on {like_TX.device}"
        )


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: torch.Tensor,
        targets_T: torch.Tensor,
        scale_T: torch.Tensor,
        columns: int,
        first: int,
        ignore_index: int,
        with_entropy: bool,
        shard: VocabShard | None,
        in_place: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        targets_T = targets_T.contiguous()
        stats_4T = kernels.token_stats(logits_TV, targets_T, scale_T, columns, first, ignore_index, with_entropy)
        if shard is not None:
            stats_4T = join_stats(stats_4T, scale_T, shard.group)
        log_probs_T, log_sum_exp_T, entropy_T, log_sum_T = results_of(stats_4T, scale_T, targets_T == ignore_index)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(logits_TV, targets_T, scale_T, stats_4T[0], log_sum_T, entropy_T)
            ctx.settings = (columns, first, ignore_index)
            ctx.with_entropy, ctx.in_place = with_entropy, in_place
        if not with_entropy:
            ctx.mark_non_differentiable(entropy_T)
        return log_probs_T, log_sum_exp_T, entropy_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits_TV, targets_T, scale_T, maximum_T, log_sum_T, entropy_T = ctx.saved_tensors
        grad_log_probs_T, grad_lse_T, grad_entropy_T = grads
        if not ctx.with_entropy:
            entropy_T = grad_entropy_T = torch.zeros_like(grad_log_probs_T)
        rows_6T = torch.stack([maximum_T, log_sum_T, entropy_T, grad_log_probs_T, grad_lse_T, grad_entropy_T])
        out_TV = (
            logits_TV if ctx.in_place else torch.empty(logits_TV.shape, dtype=logits_TV.dtype, device=logits_TV.device)
        )
        columns, first, ignore_index = ctx.settings
        kernels.token_grad(logits_TV, targets_T, scale_T, rows_6T, columns, first, ignore_index, out_TV)
        return out_TV, *([None] * 8)
