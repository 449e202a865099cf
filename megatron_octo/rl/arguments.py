"""A recipe's `rl` section as OpenRLHF 0.11.2's own options."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_octo.errors import RecipeError
from megatron_octo.recipe.rl import RlSection
from megatron_octo.runtime.rl_folder import RlFolder

OPENRLHF = "0.11.2"
"""The one version of OpenRLHF whose options and classes this package knows."""
AGENT = Path(__file__).with_name("agent.py")
VALIDATION_SCORE = "eval_validation_pass1"
"""OpenRLHF's name of the validation score. It contains the prompts' `datasource`, which is `validation`."""

_RESERVED = {
    "critic.model_name_or_path", "train.async_enable", "reward.remote_url", "eval.dataset", "ckpt.disable_ds",
    "actor.num_nodes", "critic.num_nodes", "ref.num_nodes",
}  # fmt: skip
"""Options that `rl.openrlhf` may not set, although `openrlhf_options` does not always set them."""
_DEFAULTS = {"vllm.gpu_memory_utilization", "vllm.enforce_eager", "ds.attn_implementation", "actor.entropy_coef"}
"""Options that `openrlhf_options` sets, and `rl.openrlhf` may override."""
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
"""What argparse takes for a negative number and not for an option."""


def openrlhf_options(rl: RlSection, *, model: Path, folder: RlFolder, on_cpu: bool) -> dict[str, Any]:
    """OpenRLHF's options by name, without the leading dashes.

    Args:
        model: the folder of an exported stage.
        folder: where OpenRLHF finds the prompts, and leaves checkpoints, the last model and TensorBoard files.

    Raises:
        RecipeError: `rl.openrlhf` sets an option that the section has a key for.
    """
    options: dict[str, Any] = {
        "actor.model_name_or_path": str(model),
        "actor.num_gpus_per_node": rl.gpus,
        "actor.adam.lr": rl.learning_rate,
        "actor.lr_scheduler": _scheduler(rl),
        "actor.lr_warmup_ratio": rl.warmup,
        "actor.eps_clip": rl.clip,
        "actor.entropy_coef": 0.0,  # logged, no bonus
        "vllm.num_engines": rl.engines,
        "vllm.tensor_parallel_size": rl.engine_gpus,
        "algo.advantage.estimator": rl.algorithm,
        "algo.kl.init_coef": rl.kl_coefficient,
        "algo.advantage.is_correction_level": rl.correction.level,
        "algo.advantage.is_correction_mode": rl.correction.mode,
        "algo.advantage.is_correction_threshold": list(rl.correction.bounds),
        "rollout.batch_size": rl.prompts_per_step,
        "rollout.n_samples_per_prompt": rl.samples_per_prompt,
        "rollout.temperature": rl.temperature,
        "rollout.micro_batch_size": rl.micro_batch_size,
        "rollout.max_new_tokens": rl.longest_response,
        "train.batch_size": rl.mini_batch_prompts * rl.samples_per_prompt,
        "train.micro_batch_size": rl.micro_batch_size,
        "train.num_episodes": rl.episodes,
        "train.seed": rl.seed,
        "train.agent_func_path": str(AGENT),
        "data.prompt_dataset": str(folder.prompts),
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": rl.max_prompt_tokens + rl.longest_response,
        "ckpt.path": str(folder.checkpoints),
        "ckpt.output_dir": str(folder.last),
        "ckpt.save_steps": rl.save_every,
        "ckpt.max_num": rl.keep,
        "ckpt.save_hf": rl.validation is not None,  # for the best model; the last one is saved anyway
        "ckpt.load_enable": True,
        "logger.tensorboard_dir": str(folder.tensorboard),
    }
    if rl.kl_coefficient:
        options["ref.num_gpus_per_node"] = rl.gpus
    if rl.algorithm == "gae":
        options |= {
            "critic.model_name_or_path": str(model),
            "critic.num_gpus_per_node": rl.gpus,
            "critic.adam.lr": rl.critic_learning_rate,
            "critic.lr_scheduler": _scheduler(rl),
            "critic.lr_warmup_ratio": rl.warmup,
        }
    if rl.validation is not None:
        options |= {
            "eval.dataset": str(folder.validation_prompts),
            "eval.steps": rl.validate_every,
            "eval.temperature": 0.0,  # greedy [A]
            "eval.n_samples_per_prompt": 1,
            "ckpt.best_metric_key": VALIDATION_SCORE,
        }
    if on_cpu:
        options |= {
            "vllm.sync_backend": "gloo",
            "vllm.enforce_eager": True,
            "vllm.gpu_memory_utilization": 0.1,  # a share of the machine's memory; the cache has a limit of its own
            "ds.attn_implementation": "sdpa",
        }
    if taken := sorted((options.keys() | _RESERVED) & rl.openrlhf.keys() - _DEFAULTS):
        raise RecipeError(
            f"rl.openrlhf.{taken[0]}: is set by the `rl` section itself, or not served here; use the section's own key "
            "(docs/rl.md)"
        )
    return options | rl.openrlhf


def _scheduler(rl: RlSection) -> str:
    """The name of transformers' scheduler. Its `constant` silently ignores the warm-up."""
    has_warmup = rl.learning_rate_shape == "constant" and rl.warmup > 0
    return "constant_with_warmup" if has_warmup else rl.learning_rate_shape


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as OpenRLHF's parser takes them: a bare flag for true, nothing for false and None.

    A value stands in one word with its option (`--name=-1e-05`), so that argparse does not take a negative number for
    an option. The entries of a list cannot.

    Raises:
        RecipeError: an entry of a list looks like an option.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            entries = [str(entry) for entry in value]
            if wrong := [entry for entry in entries if entry.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(entry)]:
                raise RecipeError(f"rl.openrlhf.{name}: {wrong[0]} would be taken for an option; give another value")
            words += [f"--{name}", *entries]
        else:
            words.append(f"--{name}={value}")
    return words


def gpus_needed(rl: RlSection, options: Mapping[str, Any]) -> int:
    """GPUs that a run takes from Ray.

    Raises:
        RecipeError: `train.colocate_all` with different numbers of GPUs for the actor and the engines.
    """
    engines = rl.engines * rl.engine_gpus
    if options.get("train.colocate_all"):
        if rl.gpus != engines:
            raise RecipeError(
                f"rl.openrlhf.train.colocate_all: rl.gpus = {rl.gpus} must equal rl.engines x rl.engine_gpus, which is "
                f"{engines}"
            )
        return rl.gpus
    has_reference = rl.kl_coefficient > 0 and not options.get("train.colocate_actor_ref")
    return (1 + ("critic.model_name_or_path" in options) + has_reference) * rl.gpus + engines
