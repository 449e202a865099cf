"""The actor's log-probs and entropy from hidden states, in OpenRLHF's Actor.

OpenRLHF casts all logits to fp32, and walks them once for log-probs and once for entropy. Here the causal model's own
forward, asked for targets, gives log-probs instead of logits: called through DeepSpeed's engine as before, so that the
engine's hooks (ZeRO-3's gathers among them) see what they always do. Asked for no targets, it answers as it always did.
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

_KNOWN_FORWARD = (
    "self", "sequences", "action_mask", "attention_mask", "return_output", "allgather_logits", "return_logprobs",
    "ring_attn_group", "packed_seq_lens", "return_entropy", "mm_inputs",
)  # fmt: skip


@dataclass
class LogProbsOutput(ModelOutput):
    """What the causal model answers when it is given targets: (batch, sequence) each, 0 where nothing was asked."""

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


def install_fused_actor() -> None:
    """Replace `Actor.forward` in this process. Safe to call again.

    Raises:
        RuntimeSetupError: another version of OpenRLHF, or an Actor that is not the one known here.
    """
    from importlib.metadata import version

    from openrlhf.models.actor import Actor

    if hasattr(Actor.forward, "octo_original"):
        return
    found = version("openrlhf")
    parameters = tuple(inspect.signature(Actor.forward).parameters)
    if found != OPENRLHF or parameters != _KNOWN_FORWARD:
        raise RuntimeSetupError(
            f"OpenRLHF {found} has Actor.forward({', '.join(parameters)}); the fused log-probs know {OPENRLHF}'s. "
            f"Install openrlhf=={OPENRLHF}, or set rl.fused_log_probs to false"
        )
    original = Actor.forward

    @functools.wraps(original)
    def forward(self: Any, sequences: torch.Tensor, action_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(self, sequences, action_mask, *args, **kwargs)
        call.apply_defaults()
        if not _serves(self, call.arguments):
            return original(self, sequences, action_mask, *args, **kwargs)
        return _forward(self, **{key: call.arguments[key] for key in _USED})

    forward.octo_original = original  # type: ignore[attr-defined]
    Actor.forward = forward


_USED = ("sequences", "action_mask", "attention_mask", "return_output", "return_entropy", "return_logprobs")


def _serves(actor: Any, call: dict[str, Any]) -> bool:
    """Whether a call is for log-probs of unpacked text; logits, packed samples and images go OpenRLHF's way."""
    wants = call["action_mask"] is not None or call["return_logprobs"]
    return bool(wants and not actor.packing_samples and not getattr(actor, "is_vlm", False) and not call["mm_inputs"])


def _forward(
    actor: Any,
    sequences: torch.Tensor,
    action_mask: torch.Tensor | None,
    attention_mask: torch.Tensor,
    return_output: bool,
    return_entropy: bool,
    return_logprobs: bool,
) -> Any:
    """As `Actor.forward`: (batch, actions) log-probs, and with `return_output` a record that holds the entropy.

    Positions that are no action get no log-prob: OpenRLHF multiplies them by zero, and here they are left out of the
    product with the output weight.
    """
    del return_logprobs
    targets_BS = torch.roll(sequences, shifts=-1, dims=1)
    keep_BS = attention_mask.bool().roll(shifts=-1, dims=1)
    if action_mask is not None:
        actions = action_mask.size(1)
        keep_BS = torch.zeros_like(keep_BS)
        # the last column predicts nothing: action i of n stands at column S - 1 - n + i
        keep_BS[:, -1 - actions : -1] = action_mask.bool()
    keep_BS[:, -1] = False
    position_ids = attention_mask.long().cumsum(-1) - 1
    position_ids.masked_fill_(attention_mask == 0, 1)
    _give_forward(actor.model)
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


def _give_forward(model: Any) -> None:
    """Teach the causal model under an engine (and under LoRA) to answer targets with log-probs. Done once a class."""
    causal = model
    while not hasattr(causal, "get_output_embeddings") or hasattr(causal, "module"):
        causal = causal.module
    if hasattr(causal, "get_base_model"):
        causal = causal.get_base_model()
    kind = type(causal)
    if hasattr(kind.forward, "octo_original"):
        return
    if not hasattr(kind, "base_model_prefix") or causal.get_output_embeddings() is None:
        raise RuntimeSetupError(f"{kind.__name__} has no output embeddings; set rl.fused_log_probs to false")
    original = kind.forward

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
    kind.forward = forward
