"""Token log-probs from logits: one read forward, one read and one write backward, no fp32 copy of the logits."""

from dataclasses import dataclass
from typing import Any

import torch

from megatron_octo.errors import OperatorError
from megatron_octo.ops import kernels
from megatron_octo.ops.plain import accumulation_dtype
from megatron_octo.ops.shard import VocabShard, all_reduce_stats

IGNORE_INDEX = -100
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6
"""Within these limits 1 / temperature, and its product with a logit of up to 1e32, are finite in fp32."""


@dataclass(frozen=True)
class TokenLogProbs:
    """Results for each token, in fp32 (fp64 for fp64 input). They are 0 where the target is the ignore index."""

    log_probs: torch.Tensor
    """(tokens,) log-probability of the target under the temperature-scaled distribution, in nats."""
    log_sum_exp: torch.Tensor
    """(tokens,) log of the sum of exp(logits / temperature)."""
    entropy: torch.Tensor | None
    """(tokens,) in nats; None unless it was requested."""


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

    Gradients flow to the logits through all three results, together or alone, but only once (no double backward).
    Never waits for the device.

    Args:
        logits_TV: (tokens, vocabulary), fp32, bf16, fp16 or fp64; any strides, any vocabulary size.
        targets_T: (tokens,) int64. A target outside the vocabulary gives -inf, unless it is `ignore_index`.
        temperature: one number, or (tokens,), from LOWEST_TEMPERATURE to HIGHEST_TEMPERATURE. No gradient flows to it.
        return_entropy: also compute the entropy of the temperature-scaled distribution.
        ignore_index: tokens with this target give 0 everywhere, and no gradient.
        shard: this rank's columns, if the vocabulary is split over a group.
        in_place_backward: write the gradient over the logits, which saves its memory. Nothing may read the logits
            afterwards; autograd raises an error if it would have to.

    Raises:
        OperatorError: invalid shapes, dtypes, temperature or strides.
    """
    _check_logits(logits_TV, targets_T)
    if in_place_backward:
        _check_in_place_rows(logits_TV)
    scale_T = inverse_temperature(temperature, logits_TV)
    columns, first = (shard.size, shard.first) if shard is not None else (logits_TV.size(1), 0)
    if columns > logits_TV.size(1):
        raise OperatorError(
            f"shard.size = {columns}, but the logits have {logits_TV.size(1)} columns; give that many or fewer"
        )
    log_probs_T, log_sum_exp_T, entropy_T = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        logits_TV, targets_T, scale_T, columns, first, ignore_index, return_entropy, shard, in_place_backward
    )
    return TokenLogProbs(log_probs_T, log_sum_exp_T, entropy_T if return_entropy else None)


def inverse_temperature(temperature: float | torch.Tensor, like_TX: torch.Tensor) -> torch.Tensor:
    """(tokens,) 1 / temperature, in the dtype of sums and on the device of `like_TX` (tokens, any).

    The values of a tensor are checked only on the CPU. On another device the check would wait for the device, and
    under torch.compile it cannot be traced; there, values outside the limits become NaN, and so do the results.

    Raises:
        OperatorError: a value outside the limits, or a tensor of another shape or dtype.
    """
    dtype, tokens = accumulation_dtype(like_TX.dtype), like_TX.size(0)
    if not isinstance(temperature, torch.Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise OperatorError(f"temperature = {temperature!r:.80}: give a number, or a tensor of one number a token")
        if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:  # also refuses NaN
            raise _temperature_error(temperature)
        return like_TX.new_full((tokens,), 1.0 / temperature, dtype=dtype)
    if temperature.dim() > 0 and temperature.shape != (tokens,):
        raise OperatorError(
            f"temperature of shape {list(temperature.shape)}: give one number, or one for each of {tokens} tokens"
        )
    if temperature.is_complex() or temperature.dtype == torch.bool:
        raise OperatorError(f"temperature of dtype {temperature.dtype}: give a floating-point dtype")
    values_T = temperature.detach().to(dtype=dtype, device=like_TX.device)
    is_valid_T = (values_T >= LOWEST_TEMPERATURE) & (values_T <= HIGHEST_TEMPERATURE)
    # A subclass of Tensor, such as FakeTensor, may have no values to look at.
    if type(is_valid_T) is torch.Tensor and is_valid_T.device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool(is_valid_T.all()):
            raise _temperature_error(float(values_T[~is_valid_T].flatten()[0]))
    else:
        values_T = torch.where(is_valid_T, values_T, torch.nan)
    return values_T.reciprocal().expand(tokens).contiguous()


def _temperature_error(temperature: float) -> OperatorError:
    is_long = isinstance(temperature, int) and temperature.bit_length() > 64
    shown = f"an integer of {int(temperature).bit_length()} bits" if is_long else temperature
    return OperatorError(
        f"temperature = {shown}: it must be above 0, from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}; "
        "for greedy decoding take the likeliest token"
    )


def results_from_stats(
    stats_4T: torch.Tensor, scale_T: torch.Tensor, ignored_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute log_probs, log_sum_exp, entropy and the log of the sum from the statistics of whole rows.

    Log-probs are computed from differences to the maximum, not from log_sum_exp, whose rounding error grows with the
    maximum.

    Args:
        stats_4T: (4, tokens), as `plain.token_stats` returns them.
        scale_T: (tokens,) 1 / temperature.
        ignored_T: (tokens,) bool; the first three results are 0 there.

    Returns:
        Four tensors (tokens,). The last, the log of the second statistic, is for the backward pass.
    """
    maximum_T, sum_T, weighted_T, target_T = stats_4T
    log_sum_T = sum_T.log()
    log_probs_T = (target_T - maximum_T) * scale_T - log_sum_T
    results = (log_probs_T, maximum_T * scale_T + log_sum_T, log_sum_T - weighted_T / sum_T)
    log_probs_T, log_sum_exp_T, entropy_T = (result.masked_fill(ignored_T, 0.0) for result in results)
    return log_probs_T, log_sum_exp_T, entropy_T, log_sum_T


def _check_logits(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> None:
    if logits_TV.dim() != 2 or not logits_TV.is_floating_point():
        raise OperatorError(
            f"logits of shape {list(logits_TV.shape)}, {logits_TV.dtype}: give (tokens, vocabulary), floating point"
        )
    check_targets(targets_T, logits_TV)


def _check_in_place_rows(logits_TV: torch.Tensor) -> None:
    tokens, stored = logits_TV.shape
    if (stored > 1 and logits_TV.stride(1) != 1) or (tokens > 1 and logits_TV.stride(0) < stored):
        raise OperatorError(
            f"in_place_backward with strides {list(logits_TV.stride())}: the gradient needs rows that are contiguous "
            "and do not overlap; give logits_TV.contiguous(), or leave out in_place_backward"
        )


def check_targets(targets_T: torch.Tensor, like_TX: torch.Tensor) -> None:
    """Refuse targets that are not (tokens,) int64 on the device of `like_TX` (tokens, any)."""
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
            stats_4T = all_reduce_stats(stats_4T, scale_T, shard.group)
        log_probs_T, log_sum_exp_T, entropy_T, log_sum_T = results_from_stats(
            stats_4T, scale_T, targets_T == ignore_index
        )
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
