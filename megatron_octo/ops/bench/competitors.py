"""The implementations that are measured. All take the same inputs and return log-probs and entropy, with a graph."""

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from megatron_octo.ops import linear_token_log_probs, token_log_probs

Outputs = tuple[torch.Tensor, torch.Tensor | None]
"""(tokens,) log-probs, and (tokens,) entropy or None if the competitor does not compute it."""


MEAN = " *"
"""Suffix of the name of a competitor that returns only the mean loss, expanded to the tokens."""


@dataclass(frozen=True)
class Competitor:
    """One implementation of log-probs."""

    name: str
    run: Callable[..., Outputs]
    is_ours: bool = False


def for_logits(device: torch.device) -> list[Competitor]:
    """Competitors that take logits (tokens, vocabulary) and targets (tokens,), as far as they are installed."""
    found = [
        Competitor("octo", _octo, is_ours=True),
        Competitor("octo, in place", _octo_in_place, is_ours=True),
        Competitor("torch log_softmax", _torch),
    ]
    if (utils := _openrlhf_utils()) is not None:
        found.append(Competitor("OpenRLHF", _openrlhf(utils)))
    if device.type == "cuda" and (flash := _attribute("flash_attn.ops.triton.cross_entropy", "cross_entropy_loss")):
        found.append(Competitor("flash-attn", lambda x, t: (-flash(x.float(), t)[0], None)))
    return found


def for_linear(device: torch.device) -> list[Competitor]:
    """Competitors that take hidden states (tokens, hidden), a weight (vocabulary, hidden) and targets (tokens,)."""
    found = [Competitor("octo", _octo_linear, is_ours=True), Competitor("GEMM, log_softmax", _torch_linear)]
    if (utils := _openrlhf_utils()) is not None:
        from_logits = _openrlhf(utils)
        found.append(Competitor("GEMM, OpenRLHF", lambda h, w, t: from_logits(h @ w.t(), t)))
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        found.append(Competitor(f"torch linear CE{MEAN}", _torch_linear_cross_entropy))
    if device.type == "cuda":
        found.insert(1, Competitor("octo, block 8192", partial(_octo_linear, vocabulary_block=8192), is_ours=True))
        if cut := _attribute("cut_cross_entropy", "linear_cross_entropy"):
            found.append(Competitor("cut-cross-entropy", lambda h, w, t: (-cut(h, w, t, reduction="none"), None)))
        liger = _attribute("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
        if liger:
            found.append(Competitor(f"Liger{MEAN}", lambda h, w, t: ((-liger(h, w, t)).expand(len(t)), None)))
    return found


def _octo(logits: torch.Tensor, targets: torch.Tensor) -> Outputs:
    result = token_log_probs(logits, targets, return_entropy=True)
    return result.log_probs, result.entropy


def _octo_in_place(logits: torch.Tensor, targets: torch.Tensor) -> Outputs:
    result = token_log_probs(logits, targets, return_entropy=True, in_place_backward=True)
    return result.log_probs, result.entropy


def _torch(logits: torch.Tensor, targets: torch.Tensor) -> Outputs:
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(dim=-1)


def _octo_linear(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocabulary_block: int | None = None
) -> Outputs:
    result = linear_token_log_probs(hidden, weight, targets, return_entropy=True, vocabulary_block=vocabulary_block)
    return result.log_probs, result.entropy


def _torch_linear(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Outputs:
    return _torch(hidden @ weight.t(), targets)


def _torch_linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Outputs:
    loss = torch.nn.functional.linear_cross_entropy(hidden, weight, targets)
    return (-loss).expand(len(targets)), None


def _openrlhf(utils: Any) -> Callable[..., Outputs]:
    def run(logits: torch.Tensor, targets: torch.Tensor) -> Outputs:
        logits = logits.to(torch.float32)  # as its Actor.forward does
        return utils.log_probs_from_logits(logits[None], targets[None])[0], utils.compute_entropy(logits[None])[0]

    return run


def _openrlhf_utils() -> Any | None:
    """OpenRLHF's `models/utils.py`, loaded from its path, because its package imports Ray and flash-attn.

    The file imports deepspeed for something that is not used here. An empty module replaces it if it is not installed.
    """
    package = importlib.util.find_spec("openrlhf")
    if package is None or not package.submodule_search_locations:
        return None
    path = f"{package.submodule_search_locations[0]}/models/utils.py"
    spec = importlib.util.spec_from_file_location("openrlhf_models_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    if not has_deepspeed:
        sys.modules["deepspeed"] = types.ModuleType("deepspeed")
    try:
        spec.loader.exec_module(module)
    finally:
        if not has_deepspeed:
            del sys.modules["deepspeed"]
    return module


def _attribute(module: str, name: str) -> Callable[..., Any] | None:
    """A function of a library, or None if that is not installed."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    return found
