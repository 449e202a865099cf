"""The two row kernels in plain PyTorch: the reference for the compiled kernels, and the fallback without them.

They take every dtype and device, and compute fp64 inputs in fp64 and all others in fp32.
"""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and results: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_stats(
    logits_TV: torch.Tensor,
    targets_T: torch.Tensor,
    inverse_temperature_T: torch.Tensor,
    columns: int,
    first: int,
    ignore_index: int,
    entropy: bool,
) -> torch.Tensor:
    """Softmax statistics of each row's first `columns` logits x.

    The maximum is subtracted before scaling: the difference of scaled logits would keep their rounding errors.

    Args:
        logits_TV: (tokens, stored), where stored is at least `columns`; the columns after them are padding.
        targets_T: (tokens,) int64, in the numbering of the whole vocabulary.
        inverse_temperature_T: (tokens,) 1 / temperature.
        columns: vocabulary entries of this shard.
        first: vocabulary index of column 0.
        ignore_index: the target of ignored tokens.
        entropy: whether to compute the third statistic.

    Returns:
        (4, tokens) fp32, or fp64 for fp64 logits. With d = (x - maximum) * inverse_temperature: the maximum; the sum of
        exp(d); the sum of d * exp(d), or 0 without `entropy`; x at the target, or -inf if another shard holds it.
        Ignored tokens have (0, 1, 0, 0).
    """
    dtype = accumulation_dtype(logits_TV.dtype)
    # 1. Row maximum of the logits
    x_TV = logits_TV[:, :columns].to(dtype)
    maximum_T = x_TV.amax(dim=1) if columns else x_TV.new_full((x_TV.size(0),), -torch.inf)
    # 2. Sums over the row
    d_TV = x_TV - maximum_T.masked_fill(maximum_T == -torch.inf, 0.0)[:, None]
    d_TV = d_TV * inverse_temperature_T.to(dtype)[:, None]
    e_TV = d_TV.exp()
    weighted_T = (
        (d_TV * e_TV).masked_fill(d_TV == -torch.inf, 0.0).sum(dim=1) if entropy else torch.zeros_like(maximum_T)
    )
    # 3. Logit at the target
    column_T = targets_T - first
    is_here_T = (column_T >= 0) & (column_T < columns)
    if columns:
        at_target_T = x_TV.gather(1, column_T.clamp(0, columns - 1)[:, None])[:, 0]
        at_target_T = at_target_T.masked_fill(~is_here_T, -torch.inf)
    else:
        at_target_T = torch.full_like(maximum_T, -torch.inf)
    stats_4T = torch.stack([maximum_T, e_TV.sum(dim=1), weighted_T, at_target_T])
    ignored_4T = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=dtype, device=stats_4T.device)[:, None]
    return torch.where(targets_T == ignore_index, ignored_4T, stats_4T)


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
    """Write the gradient of the logits into `out_TV`, which may be the logits themselves.

    With z = x * inverse_temperature and log p = (x - maximum) * inverse_temperature - log_sum:

        d log_prob / dz_v = [v is the target] - p_v
        d log_sum_exp / dz_v = p_v
        d entropy / dz_v = -p_v * (log p_v + entropy)

    Args:
        logits_TV: as for `token_stats`, like the other arguments not named here.
        rows_6T: (6, tokens): maximum, log of the sum, entropy, and the upstream gradients of log_prob, log_sum_exp and
            entropy.
        out_TV: the shape of logits_TV; padding gets 0.
    """
    dtype = accumulation_dtype(logits_TV.dtype)
    maximum_T, log_sum_T, entropy_T, grad_log_prob_T, grad_lse_T, grad_entropy_T = rows_6T.to(dtype)[:, :, None]
    scale_T = inverse_temperature_T.to(dtype)[:, None]
    # 1. Log-probabilities
    log_p_TV = (logits_TV[:, :columns].to(dtype) - maximum_T) * scale_T - log_sum_T
    p_TV = log_p_TV.exp()
    # 2. Gradient of every column as if none were the target; p * log p is 0 where p is 0
    surprise_TV = p_TV * (log_p_TV + entropy_T)
    surprise_TV = surprise_TV.masked_fill(log_p_TV == -torch.inf, 0.0)
    grad_TV = p_TV * (grad_lse_T - grad_log_prob_T) - grad_entropy_T * surprise_TV
    # 3. Gradient at the target
    column_T = targets_T - first
    is_here_T = (column_T >= 0) & (column_T < columns)
    if columns:
        index_T = column_T.clamp(0, columns - 1)[:, None]
        # 1 - p cancels catastrophically near p = 1; use expm1
        one_minus_p_T = -torch.expm1(log_p_TV.gather(1, index_T))
        at_target_T = grad_log_prob_T * one_minus_p_T + grad_lse_T * p_TV.gather(1, index_T)
        at_target_T = at_target_T - grad_entropy_T * surprise_TV.gather(1, index_T)
        kept_T = torch.where(is_here_T[:, None], at_target_T, grad_TV.gather(1, index_T))
        grad_TV = grad_TV.scatter(1, index_T, kept_T)
    # 4. Scale, mask ignored tokens, zero the padding
    grad_TV = (grad_TV * scale_T).masked_fill((targets_T == ignore_index)[:, None], 0.0)
    out_TV[:, :columns].copy_(grad_TV)
    out_TV[:, columns:].zero_()
