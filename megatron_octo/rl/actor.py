"""Fused log-probs and entropy in OpenRLHF's Actor, computed from hidden states.

OpenRLHF casts all logits to fp32, then reads them once for log-probs and once for entropy. Here the causal model's own
forward returns log-probs instead of logits if it is given targets; without targets it does what it always did. It is
still called through DeepSpeed's engine, so that the engine's hooks (for example the gathers of ZeRO-3) run as usual.
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.ops import linear_token_log_probs
from megatron_octo.ops.logits import IGNORE_INDEX
from megatron_octo.rl.arguments import OPENRLHF

_KNOWN_PARAMETERS = (
    "self", "sequences", "action_mask", "attention_mask", "return_output", "allgather_logits", "return_logprobs",
    "ring_attn_group", "packed_seq_lens", "return_entropy", "mm_inputs",
)  # fmt: skip
"""Parameters of OpenRLHF's `Actor.forward`."""
_USED = ("sequences", "action_mask", "attention_mask", "return_output", "return_entropy")
"""Those that `_fused_forward` takes."""


@dataclass
class LogProbsOutput(ModelOutput):
    """The output of a causal model that was given targets.

    Both tensors are (batch, sequence) fp32, and 0 at positions whose target is IGNORE_INDEX.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


def install_fused_actor() -> None:
    """Replace `Actor.forward` in this process. Safe to call again.

    Raises:
        RuntimeSetupError: another version of OpenRLHF, or an `Actor.forward` with other parameters.
    """
    from importlib.metadata import version

    from openrlhf.models.actor import Actor

    if hasattr(Actor.forward, "octo_original"):
        return
    found = version("openrlhf")
    parameters = tuple(inspect.signature(Actor.forward).parameters)
    if found != OPENRLHF or parameters != _KNOWN_PARAMETERS:
        raise RuntimeSetupError(
            f"OpenRLHF {found} has Actor.forward({', '.join(parameters)}); the fused log-probs know {OPENRLHF}'s. "
            f"Install openrlhf=={OPENRLHF}, or set rl.fused_log_probs to false"
        )
    original = Actor.forward

    @functools.wraps(original)
    def forward(self: Any, sequences: torch.Tensor, action_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(self, sequences, action_mask, *args, **kwargs)
        call.apply_defaults()
        if not _can_be_fused(self, call.arguments):
            return original(self, sequences, action_mask, *args, **kwargs)
        return _fused_forward(self, **{name: call.arguments[name] for name in _USED})

    forward.octo_original = original  # type: ignore[attr-defined]
    Actor.forward = forward


def _can_be_fused(actor: Any, call: dict[str, Any]) -> bool:
    """Whether a call asks for log-probs of unpacked text. Logits, packed samples and images go OpenRLHF's way."""
    wants_log_probs = call["action_mask"] is not None or call["return_logprobs"]
    has_images = getattr(actor, "is_vlm", False) or call["mm_inputs"]
    return bool(wants_log_probs and not actor.packing_samples and not has_images)


def _fused_forward(
    actor: Any,
    sequences: torch.Tensor,
    action_mask: torch.Tensor | None,
    attention_mask: torch.Tensor,
    return_output: bool,
    return_entropy: bool,
) -> Any:
    """`Actor.forward`, fused: (batch, actions) log-probs, and with `return_output` the model's output too.

    Log-probs are computed for actions alone. OpenRLHF multiplies the others by zero; here they are left out of the
    product with the output weight.
    """
    targets_BS = torch.roll(sequences, shifts=-1, dims=1)
    keep_BS = attention_mask.bool().roll(shifts=-1, dims=1)
    if action_mask is not None:
        actions = action_mask.size(1)
        keep_BS = torch.zeros_like(keep_BS)
        # the last column predicts nothing, so action i of n is predicted at column S - 1 - n + i
        keep_BS[:, -1 - actions : -1] = action_mask.bool()
    keep_BS[:, -1] = False
    position_ids = attention_mask.long().cumsum(-1) - 1
    position_ids.masked_fill_(attention_mask == 0, 1)
    _add_targets_to_forward(actor.model)
    output = actor.model(
        sequences,
        attention_mask=attention_mask,
        position_ids=position_ids,
        octo_targets=targets_BS.masked_fill(~keep_BS, IGNORE_INDEX),
        octo_temperature=actor.temperature,
        octo_entropy=return_entropy,
    )
    log_probs = output.log_probs[:, :-1]
    if return_entropy:
        output.entropy = output.entropy[:, :-1]
    if action_mask is not None:
        log_probs = log_probs[:, -action_mask.size(1) :]
    return (log_probs, output) if return_output else log_probs


def _add_targets_to_forward(model: Any) -> None:
    """Make the causal model inside an engine (and inside LoRA) return log-probs for targets. Once for each class."""
    causal = model
    while not hasattr(causal, "get_output_embeddings") or hasattr(causal, "module"):
        causal = causal.module
    if hasattr(causal, "get_base_model"):
        causal = causal.get_base_model()
    model_class = type(causal)
    if hasattr(model_class.forward, "octo_original"):
        return
    if not hasattr(model_class, "base_model_prefix") or causal.get_output_embeddings() is None:
        raise RuntimeSetupError(f"{model_class.__name__} has no output embeddings; set rl.fused_log_probs to false")
    original = model_class.forward

    @functools.wraps(original)
    def forward(
        self: Any,
        *args: Any,
        octo_targets: torch.Tensor | None = None,
        octo_temperature: float = 1.0,
        octo_entropy: bool = False,
        **kwargs: Any,
    ) -> Any:
        if octo_targets is None:
            return original(self, *args, **kwargs)
        hidden_BSH = self.model(*args, **kwargs).last_hidden_state
        result = linear_token_log_probs(
            hidden_BSH.flatten(0, 1),
            self.get_output_embeddings().weight,
            octo_targets.flatten(),
            temperature=octo_temperature,
            return_entropy=octo_entropy,
        )
        entropy = result.entropy
        return LogProbsOutput(
            log_probs=result.log_probs.view(octo_targets.shape),
            entropy=None if entropy is None else entropy.view(octo_targets.shape),
        )

    forward.octo_original = original  # type: ignore[attr-defined]
    model_class.forward = forward
