"""The two row kernels in plain PyTorch: what the compiled ones are held against, and what serves where there is none.

Every dtype and device; fp64 in fp64, everything else in fp32.
"""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in, and results given in."""
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
    """Statistics of each row's first `columns` logits x.

    Differences are taken before they are scaled: of scaled logits their rounding would be left.

    Args:
        first: vocabulary index of column 0.
        entropy: whether the third statistic is asked for.

    Returns:
        (4, tokens): the maximum m; with d = (x - m) * inverse_temperature, sum of exp(d); sum of d exp(d), or 0; x at
        the target, -inf where another shard holds it. Rows of the ignore index are (0, 1, 0, 0).
    """
    dtype = accumulation_dtype(logits_TV.dtype)
    x_TV = logits_TV[:, :columns].to(dtype)
    maximum_T = x_TV.amax(dim=1) if columns else x_TV.new_full((x_TV.size(0),), -torch.inf)
    d_TV = x_TV - maximum_T.masked_fill(maximum_T == -torch.inf, 0.0)[:, None]
    d_TV = d_TV * inverse_temperature_T.to(dtype)[:, None]
    e_TV = d_TV.exp()
    weighted_T = (
        (d_TV * e_TV).masked_fill(d_TV == -torch.inf, 0.0).sum(dim=1) if entropy else torch.zeros_like(maximum_T)
    )
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

    With z = x * inverse_temperature and log p = (x - maximum) * inverse_temperature - log_sum: d log_prob / dz_v =
    [v is the target] - p_v; d log_sum_exp / dz_v = p_v; d entropy / dz_v = -p_v (log p_v + entropy).

    Args:
        rows_6T: maximum, log of the sum, entropy, and the gradients of log_prob, log_sum_exp and entropy.
    """
    dtype = accumulation_dtype(logits_TV.dtype)
    maximum_T, log_sum_T, entropy_T, grad_log_prob_T, grad_lse_T, grad_entropy_T = rows_6T.to(dtype)[:, :, None]
    scale_T = inverse_temperature_T.to(dtype)[:, None]
    log_p_TV = (logits_TV[:, :columns].to(dtype) - maximum_T) * scale_T - log_sum_T
    p_TV = log_p_TV.exp()
    # p log p is 0 where p is
    surprise_TV = p_TV * (log_p_TV + entropy_T)
    surprise_TV = surprise_TV.masked_fill(log_p_TV == -torch.inf, 0.0)
    grad_TV = p_TV * (grad_lse_T - grad_log_prob_T) - grad_entropy_T * surprise_TV
    column_T = targets_T - first
    is_here_T = (column_T >= 0) & (column_T < columns)
    if columns:
        index_T = column_T.clamp(0, columns - 1)[:, None]
        # of 1 - p nothing would be left by subtraction where p is near 1
        missing_T = -torch.expm1(log_p_TV.gather(1, index_T))
        at_target_T = grad_log_prob_T * missing_T + grad_lse_T * p_TV.gather(1, index_T)
        at_target_T = at_target_T - grad_entropy_T * surprise_TV.gather(1, index_T)
        kept_T = torch.where(is_here_T[:, None], at_target_T, grad_TV.gather(1, index_T))
        grad_TV = grad_TV.scatter(1, index_T, kept_T)
    grad_TV = (grad_TV * scale_T).masked_fill((targets_T == ignore_index)[:, None], 0.0)
    out_TV[:, :columns].copy_(grad_TV)
    out_TV[:, columns:].zero_()
