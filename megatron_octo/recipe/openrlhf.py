"""OpenRLHF 0.11.2 options that `rl.openrlhf` may not contain: those the `rl` section sets, and values it misreads."""

import re
from collections.abc import Iterable, Mapping

_KEYS = {
    "actor.num_gpus_per_node": "gpus",
    "actor.adam.lr": "learning_rate",
    "actor.lr_scheduler": "learning_rate_shape",
    "actor.lr_warmup_ratio": "warmup",
    "actor.eps_clip": "clip",
    "vllm.num_engines": "engines",
    "vllm.tensor_parallel_size": "engine_gpus",
    "algo.advantage.estimator": "algorithm",
    "algo.kl.init_coef": "kl_coefficient",
    "algo.advantage.is_correction_level": "correction.level",
    "algo.advantage.is_correction_mode": "correction.mode",
    "algo.advantage.is_correction_threshold": "correction.bounds",
    "rollout.batch_size": "prompts_per_step",
    "rollout.n_samples_per_prompt": "samples_per_prompt",
    "rollout.temperature": "temperature",
    "rollout.micro_batch_size": "micro_batch_size",
    "rollout.max_new_tokens": "response_tokens",
    "train.batch_size": "mini_batch_prompts",
    "train.micro_batch_size": "micro_batch_size",
    "train.num_episodes": "episodes",
    "train.seed": "seed",
    "data.prompt_dataset": "prompts",
    "data.max_len": "max_prompt_tokens",
    "ckpt.save_steps": "save_every",
    "ckpt.max_num": "keep",
    "eval.dataset": "validation",
}
_CRITIC_KEYS = {
    "critic.num_gpus_per_node": "gpus",
    "critic.adam.lr": "critic_learning_rate",
    "critic.lr_scheduler": "learning_rate_shape",
    "critic.lr_warmup_ratio": "warmup",
}
_WITHOUT_KEY = (
    "actor.model_name_or_path", "actor.num_nodes", "critic.model_name_or_path", "critic.num_nodes", "ref.num_nodes",
    "train.agent_func_path", "train.async_enable", "reward.remote_url", "data.input_key", "data.label_key",
    "ckpt.path", "ckpt.output_dir", "ckpt.save_hf", "ckpt.load_enable", "ckpt.disable_ds", "logger.tensorboard_dir",
)  # fmt: skip
_VALIDATION_WITHOUT_KEY = ("eval.temperature", "eval.n_samples_per_prompt", "ckpt.best_metric_key")
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
"""Texts that argparse takes for a negative number and not for an option."""


def reserved_options(*, has_critic: bool, has_reference: bool, has_validation: bool) -> Mapping[str, str | None]:
    """Options that the `rl` section sets, or that do not work here; each with the section's key for it, if any.

    Args:
        has_critic: the algorithm has one, so that the section sets its options too.
        has_reference: a reference model is held for the KL term.
        has_validation: there are validation prompts.
    """
    options: dict[str, str | None] = {**_KEYS, **dict.fromkeys(_WITHOUT_KEY)}
    if has_critic:
        options |= _CRITIC_KEYS
    if has_reference:
        options["ref.num_gpus_per_node"] = "gpus"
    if has_validation:
        options |= {"eval.steps": "validate_every", **dict.fromkeys(_VALIDATION_WITHOUT_KEY)}
    return options


def option_like(entries: Iterable[object]) -> list[str]:
    """Entries of a list that argparse would take for an option, such as `--x` and `-1e-05`.

    A single value is not in danger, since it stands in one word with its option (`--name=-1e-05`).
    """
    words = [str(entry) for entry in entries]
    return [word for word in words if word.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(word)]
