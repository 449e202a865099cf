"""A recipe's `rl` section as OpenRLHF 0.11.2's own options."""

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


def openrlhf_options(rl: RlSection, *, model: Path, folder: RlFolder, on_cpu: bool) -> dict[str, Any]:
    """OpenRLHF's options by name, without the leading dashes.

    Args:
        model: the folder of an exported stage.
        folder: where OpenRLHF finds the prompts, and leaves checkpoints, the last model and TensorBoard files.
        on_cpu: whether there is no CUDA.

    Raises:
        RecipeError: `rl.openrlhf` sets vLLM's backend for syncs on the CPU, where there is only one.
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
        if (backend := rl.openrlhf.get("vllm.sync_backend", "gloo")) != "gloo":
            raise RecipeError(f"rl.openrlhf.vllm.sync_backend = {backend!r}: without CUDA it is gloo; leave it out")
        options |= {
            "vllm.sync_backend": "gloo",
            "vllm.enforce_eager": True,
            "vllm.gpu_memory_utilization": 0.1,  # a share of the machine's memory; the cache has a limit of its own
            "ds.attn_implementation": "sdpa",
        }
    return options | rl.openrlhf


def _scheduler(rl: RlSection) -> str:
    """The name of transformers' scheduler. Its `constant` silently ignores the warm-up."""
    has_warmup = rl.learning_rate_shape == "constant" and rl.warmup > 0
    return "constant_with_warmup" if has_warmup else rl.learning_rate_shape


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Options as OpenRLHF's parser takes them: a bare flag for true, nothing for false and None.

    A value stands in one word with its option (`--name=-1e-05`), so that argparse does not take a negative number for
    an option. The entries of a list cannot; the recipe was checked for those that look like an option.
    """
    words: list[str] = []
    for name, value in options.items():
        if value is False or value is None:
            continue
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words


def gpus_needed(rl: RlSection, options: Mapping[str, Any]) -> int:
    """GPUs that a run takes from Ray."""
    if options.get("train.colocate_all"):
        return rl.gpus  # the engines share them
    has_reference = rl.kl_coefficient > 0 and not options.get("train.colocate_actor_ref")
    models = 1 + ("critic.model_name_or_path" in options) + has_reference
    return models * rl.gpus + rl.engines * rl.engine_gpus
