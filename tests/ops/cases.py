"""Inputs that have broken kernels before, and an independent fp64 reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VOCABULARIES = (7, 1000, 32_000, 128_256, 128_257)

# Tolerances against fp64 on the same (already rounded) logits.
FORWARD_ATOL = 1e-5
"""Nats."""
UNDERFLOW = 1e-35
"""Probabilities below e^-87, about 1e-38, are 0 in fp32. In a gradient they are multiplied by up to 87 and more."""
TERMS_RTOL = 1e-5
"""Relative to a gradient's terms: exp of an fp32 difference of up to 85 has a relative error of about 1e-5."""
GRAD_RTOL = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@dataclass(frozen=True)
class Expected:
    log_probs: torch.Tensor
    log_sum_exp: torch.Tensor
    entropy: torch.Tensor
    grad: torch.Tensor


def expected(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    temperature: float | torch.Tensor = 1.0,
) -> Expected:
    """Results and gradient by torch's log_softmax in fp64; `weights` are the upstream gradients."""
    x = logits.detach().double().requires_grad_()
    scale = temperature.double()[:, None] if isinstance(temperature, torch.Tensor) else temperature
    log_p = torch.log_softmax(x / scale, dim=-1)
    log_probs = log_p.gather(1, targets[:, None])[:, 0]
    entropy = -torch.xlogy(log_p.exp(), log_p.exp()).sum(-1)  # 0 log 0 is 0
    log_sum_exp = torch.logsumexp(x / scale, dim=-1)
    # The entropy's gradient comes from its formula: autograd computes 0 * inf where a probability is 0.
    p = log_p.exp().detach()
    surprise = torch.where(p > 0, log_p.detach(), 0.0) + entropy.detach()[:, None]
    (grad,) = torch.autograd.grad((log_probs * weights[0].double() + log_sum_exp * weights[2].double()).sum(), x)
    grad = grad - weights[1].double()[:, None] * p * surprise / scale
    return Expected(log_probs.detach(), log_sum_exp.detach(), entropy.detach(), grad)


def check_gradient(
    grad: torch.Tensor,
    reference: Expected,
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    temperature: float | torch.Tensor = 1.0,
) -> None:
    """Compare each value within its rounding and that of its terms, so that a wrong 0 off the target is found."""
    scale = temperature.double()[:, None] if isinstance(temperature, torch.Tensor) else temperature
    log_p = torch.log_softmax(logits.double() / scale, dim=-1)
    log_prob_weight, entropy_weight, lse_weight = (weight.double().abs()[:, None] for weight in weights)
    surprise = torch.where(log_p > -torch.inf, log_p.abs(), 0.0) + reference.entropy[:, None]
    terms = log_p.exp() * (log_prob_weight + lse_weight + entropy_weight * surprise) / scale
    at_target = torch.zeros_like(terms).scatter_(1, targets[:, None], 1.0) * log_prob_weight / scale
    least = torch.finfo(grad.dtype).smallest_normal * torch.finfo(grad.dtype).eps  # one subnormal step
    bound = GRAD_RTOL[grad.dtype] * reference.grad.abs() + TERMS_RTOL * terms + 4e-6 * at_target + max(least, UNDERFLOW)
    error = (grad.double() - reference.grad).abs()
    assert bool((error <= bound).all()), float((error / bound).max())


def normal(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    return 3.0 * torch.randn(tokens, vocabulary, generator=generator)


def negative(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """All logits far below 0: a running maximum that starts at 0 is wrong."""
    return normal(tokens, vocabulary, generator) - 1000.0


def masked(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """A third of the logits are -inf, and so is the whole first half of each row."""
    logits = normal(tokens, vocabulary, generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.33] = -torch.inf
    logits[:, : vocabulary // 2] = -torch.inf
    return logits


def floored(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """Most logits, whole shards of them, are masked with about the lowest fp32: scaled, or less another, it is -inf."""
    logits = normal(tokens, vocabulary, generator)
    logits[:, : 7 * vocabulary // 10] = -3e38
    return logits


def peaked(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """One probability near 1, where 1 - p cancels to 0 in 16 bits."""
    logits = normal(tokens, vocabulary, generator)
    logits[torch.arange(tokens), torch.arange(tokens) % vocabulary] = 25.0
    return logits


def rising(tokens: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """The running maximum changes all along the row."""
    del generator
    return torch.linspace(-60.0, 20.0, vocabulary).expand(tokens, vocabulary).clone()


KINDS: dict[str, Callable[[int, int, torch.Generator], torch.Tensor]] = {
    "normal": normal, "negative": negative, "masked": masked, "floored": floored, "peaked": peaked, "rising": rising,
}  # fmt: skip


def make(kind: str, tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets on the default device. No target is at a masked logit."""
    generator = torch.Generator().manual_seed(vocabulary)
    with torch.device("cpu"):  # the generator's device, so that all devices get the same values
        logits = KINDS[kind](tokens, vocabulary, generator).to(dtype)
        if kind == "peaked":
            targets = torch.arange(tokens) % vocabulary
            targets[::2] = torch.randint(vocabulary, (len(targets[::2]),), generator=generator)
        else:
            likely = (logits.float() > -1e30).float()
            targets = torch.multinomial(likely, 1, generator=generator)[:, 0]
    return logits.to(torch.get_default_device()), targets.to(torch.get_default_device())


def upstream(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Upstream gradients of log_probs, entropy and log_sum_exp that differ between tokens, on the default device."""
    generator = torch.Generator().manual_seed(1)
    random = (torch.randn(tokens, generator=generator, device="cpu") for _ in range(3))
    first, second, third = (x.to(torch.get_default_device()) for x in random)
    return first, second, third
