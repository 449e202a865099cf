"""A recipe's `rl` section in OpenRLHF 0.11.2's own options."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_octo.errors import RecipeError
from megatron_octo.recipe.rl import RlSection

OPENRLHF = "0.11.2"
"""The version whose options and classes are known here."""
AGENT = Path(__file__).with_name("agent.py")
VALIDATION_SCORE = "eval_validation_pass1"
"""OpenRLHF's name of the validation score: rows say `datasource: validation`."""


_OURS = {
    "critic.model_name_or_path", "train.async_enable", "reward.remote_url", "eval.dataset", "ckpt.disable_ds",
    "actor.num_nodes", "critic.num_nodes", "ref.num_nodes",
}  # fmt: skip
"""Options that change what is run, beside those that a section always sets."""
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
"""What argparse takes for a number."""
_FREE = {"vllm.gpu_memory_utilization", "vllm.enforce_eager", "ds.attn_implementation", "actor.entropy_coef"}
"""Options that we only suggest."""


def options_of(
    rl: RlSection, *, model: Path, prompts: Path, validation: Path | None, folder: Path, on_cpu: bool
) -> dict[str, Any]:
    """OpenRLHF's options by name, without the leading dashes.

    Args:
        model: an exported stage.
        prompts: JSONL rows of `input` (with the template around it), `label` and `datasource`.
        folder: where checkpoints, the last model and TensorBoard's files go.

    Raises:
        RecipeError: an option of OpenRLHF that the section has a key for.
    """
    options: dict[str, Any] = {
        "actor.model_name_or_path": str(model),
        "actor.num_gpus_per_node": rl.gpus,
        "actor.adam.lr": rl.learning_rate,
        "actor.lr_scheduler": _shape(rl),
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
        "data.prompt_dataset": str(prompts),
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": rl.max_prompt_tokens + rl.longest_response,
        "ckpt.path": str(folder / "checkpoints"),
        "ckpt.output_dir": str(folder / "last"),
        "ckpt.save_steps": rl.save_every,
        "ckpt.max_num": rl.keep,
        "ckpt.save_hf": validation is not None,  # for the best model; the last one is saved anyway
        "ckpt.load_enable": True,
        "logger.tensorboard_dir": str(folder / "tensorboard"),
    }
    if rl.kl_coefficient:
        options["ref.num_gpus_per_node"] = rl.gpus
    if rl.algorithm == "gae":
        options |= {
            "critic.model_name_or_path": str(model),
            "critic.num_gpus_per_node": rl.gpus,
            "critic.adam.lr": rl.critic_learning_rate,
            "critic.lr_scheduler": _shape(rl),
            "critic.lr_warmup_ratio": rl.warmup,
        }
    if validation is not None:
        options |= {
            "eval.dataset": str(validation),
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
    if taken := sorted((options.keys() | _OURS) & rl.openrlhf.keys() - _FREE):
        raise RecipeError(
            f"rl.openrlhf.{taken[0]}: is set by the `rl` section itself, or not served here; use the section's own key "
            "(docs/rl.md)"
        )
    return options | rl.openrlhf


def _shape(rl: RlSection) -> str:
    """transformers' `constant` leaves the warm-up out without a word."""
    has_warmup = rl.learning_rate_shape == "constant" and rl.warmup > 0
    return "constant_with_warmup" if has_warmup else rl.learning_rate_shape


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as OpenRLHF's parser takes them: a flag where the value is true, nothing where it is false.

    A value is in its option's word, so that one like -1e-05 is not taken for another option; a list's cannot be.

    Raises:
        RecipeError: a list with an entry that would be taken for an option.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            parts = [str(part) for part in value]
            if taken := [part for part in parts if part.startswith("-") and not _NEGATIVE.fullmatch(part)]:
                raise RecipeError(f"rl.openrlhf.{name}: {taken[0]} would be taken for an option; give another value")
            words += [f"--{name}", *parts]
        else:
            words.append(f"--{name}={value}")
    return words


def gpus_of(rl: RlSection, options: Mapping[str, Any]) -> int:
    """GPUs that a run takes from Ray."""
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
