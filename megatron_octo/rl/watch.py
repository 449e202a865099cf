"""What a rollout step did, in numbers: a line of metrics.jsonl a step, and the alarm."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_octo.recipe.rl import LengthAlarm

FAR = (0.9, 1.1)
"""Ratios of the trainer's and vLLM's probability of a token that count as close."""
_FROM_TRAINER = {
    "entropy": "entropy_loss",
    "kl": "kl",
    "policy_kl": "ppo_kl",
    "clip_share": "ppo_clip_ratio",
    "grad_norm": "actor_grad_norm",
    "learning_rate": "actor_lr",
    "policy_loss": "policy_loss",
    "critic_loss": "critic_loss",
    "rollout_kl": "vllm_kl",
    "correction_share": "is_filter_ratio",
}
"""Our names of what OpenRLHF reports of a step's training."""


def rollout_numbers(experiences: Sequence[Any]) -> dict[str, float]:
    """What was sampled: reward, accuracy, lengths, mismatch of log-probs.

    Args:
        experiences: OpenRLHF's, after the trainer's own log-probs were made.
    """
    right = _joined(experiences, lambda e: e.info["right"]).bool()
    lengths = _joined(experiences, lambda e: e.response_length).float()
    numbers = {
        "reward": _joined(experiences, lambda e: e.info["reward"]).float().mean().item(),
        "accuracy": right.float().mean().item(),
        "has_answer": _joined(experiences, lambda e: e.info["has_answer"]).float().mean().item(),
        "grader_timeouts": _joined(experiences, lambda e: e.info["grader_timed_out"]).sum().item(),
        "truncated_share": _joined(experiences, lambda e: e.truncated).float().mean().item(),
        "response_length": lengths.mean().item(),
        "samples": float(len(lengths)),
    }
    for name, quantile in (("median", 0.5), ("p90", 0.9), ("max", 1.0)):
        numbers[f"response_length_{name}"] = torch.quantile(lengths, quantile).item()
    for name, of in (("right", right), ("wrong", ~right)):
        if of.any():
            numbers[f"response_length_{name}"] = lengths[of].mean().item()
    return numbers | _mismatch(experiences)


def _mismatch(experiences: Sequence[Any]) -> dict[str, float]:
    """How far the trainer's log-probs of the sampled tokens lie from those vLLM sampled them with."""
    differences = [
        (e.action_log_probs.float() - e.rollout_log_probs.float())[e.action_mask.bool()]
        for e in experiences
        if e.rollout_log_probs is not None
    ]
    if not differences:
        return {}
    difference = torch.cat(differences)
    ratio = difference.exp()
    return {
        "mismatch_mean": difference.abs().mean().item(),
        "mismatch_max": difference.abs().max().item(),
        "mismatch_far_share": ((ratio < FAR[0]) | (ratio > FAR[1])).float().mean().item(),
    }


def _joined(experiences: Sequence[Any], field: Any) -> torch.Tensor:
    return torch.cat([field(e).flatten() for e in experiences])


def trainer_numbers(status: dict[str, Any]) -> dict[str, float]:
    """What OpenRLHF reports of a step, by our names."""
    numbers = {ours: float(status[theirs]) for ours, theirs in _FROM_TRAINER.items() if theirs in status}
    return numbers | {f"seconds_{k.removeprefix('timing/')}": v for k, v in status.items() if k.startswith("timing/")}


class Alarm:
    """Says when responses blow up."""

    def __init__(self, rules: LengthAlarm, before: Sequence[dict[str, Any]] = ()) -> None:
        """Take in the steps of an earlier process too, so that a restart forgets nothing."""
        self.rules = rules
        whole = [record for record in before if {"response_length", "truncated_share"} <= record.keys()]
        self.lengths = [float(record["response_length"]) for record in whole]
        self.truncated = [float(record["truncated_share"]) for record in whole]

    def observe(self, record: dict[str, Any]) -> str | None:
        """What is wrong after this step; None where nothing is."""
        self.lengths.append(record["response_length"])
        self.truncated.append(record["truncated_share"])
        window = self.rules.window
        if len(self.lengths) < window:
            return None
        share = sum(self.truncated[-window:]) / window
        if share > self.rules.truncated_share:
            return (
                f"{share:.0%} of responses are cut at their limit (alarm.truncated_share {self.rules.truncated_share})"
            )
        first, now = sum(self.lengths[:window]) / window, sum(self.lengths[-window:]) / window
        if now > self.rules.growth * first:
            return f"responses grew from {first:.0f} to {now:.0f} tokens (alarm.growth {self.rules.growth})"
        return None


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a step."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
