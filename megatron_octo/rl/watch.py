"""The metrics of a rollout step, one line of metrics.jsonl each, and the alarm that watches response lengths."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_octo.recipe.rl import LengthAlarm

_CLOSE_RATIOS = (0.9, 1.1)
"""The trainer and vLLM agree on a token if the ratio of their probabilities lies between these."""
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
"""OpenRLHF's metrics of a training step, by our names."""
_TIMING = "timing/"


def rollout_metrics(experiences: Sequence[Any]) -> dict[str, float]:
    """Metrics of the sampled responses: reward, accuracy, lengths in tokens, mismatch of log-probs.

    Args:
        experiences: OpenRLHF's, with the trainer's own log-probs in them.
    """
    right = _joined(experiences, lambda e: e.info["right"]).bool()
    lengths = _joined(experiences, lambda e: e.response_length).float()
    metrics = {
        "reward": _joined(experiences, lambda e: e.info["reward"]).float().mean().item(),
        "accuracy": right.float().mean().item(),
        "has_answer": _joined(experiences, lambda e: e.info["has_answer"]).float().mean().item(),
        "grader_timeouts": _joined(experiences, lambda e: e.info["grader_timed_out"]).sum().item(),
        "truncated_share": _joined(experiences, lambda e: e.truncated).float().mean().item(),
        "response_length": lengths.mean().item(),
        "samples": float(len(lengths)),
    }
    for name, quantile in (("median", 0.5), ("p90", 0.9), ("max", 1.0)):
        metrics[f"response_length_{name}"] = torch.quantile(lengths, quantile).item()
    for name, selected in (("right", right), ("wrong", ~right)):
        if selected.any():
            metrics[f"response_length_{name}"] = lengths[selected].mean().item()
    return metrics | _mismatch(experiences)


def _mismatch(experiences: Sequence[Any]) -> dict[str, float]:
    """How much the trainer's log-probs of the sampled tokens differ from vLLM's, which sampled them."""
    differences = [
        (e.action_log_probs.float() - e.rollout_log_probs.float())[e.action_mask.bool()]
        for e in experiences
        if e.rollout_log_probs is not None
    ]
    if not differences:
        return {}
    difference = torch.cat(differences)
    ratio = difference.exp()
    low, high = _CLOSE_RATIOS
    return {
        "mismatch_mean": difference.abs().mean().item(),
        "mismatch_max": difference.abs().max().item(),
        "mismatch_far_share": ((ratio < low) | (ratio > high)).float().mean().item(),
    }


def _joined(experiences: Sequence[Any], field: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    return torch.cat([field(e).flatten() for e in experiences])


def trainer_metrics(status: dict[str, Any]) -> dict[str, float]:
    """OpenRLHF's metrics of a training step, and its timings in seconds, by our names."""
    metrics = {ours: float(status[theirs]) for ours, theirs in _FROM_TRAINER.items() if theirs in status}
    seconds = {f"seconds_{k.removeprefix(_TIMING)}": v for k, v in status.items() if k.startswith(_TIMING)}
    return metrics | seconds


class Alarm:
    """Notices when responses grow out of hand."""

    def __init__(self, rules: LengthAlarm, before: Sequence[dict[str, Any]] = ()) -> None:
        """Start from the metrics of earlier steps, so that a resumed run compares with the run's first steps."""
        self.rules = rules
        complete = [record for record in before if {"response_length", "truncated_share"} <= record.keys()]
        self.lengths = [float(record["response_length"]) for record in complete]
        self.truncated = [float(record["truncated_share"]) for record in complete]

    def observe(self, record: dict[str, Any]) -> str | None:
        """Take in the metrics of a step. Returns what is wrong, or None."""
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


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one line to a .jsonl file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
