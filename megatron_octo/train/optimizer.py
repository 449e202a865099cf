"""The distributed optimizer (AdamW, ZeRO-1), and the learning rate written into it at every step."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer

from megatron_octo.recipe.train import TrainSection
from megatron_octo.runtime.device import on_cpu
from megatron_octo.train.bucket_padding import keep_bucket_padding


def wrap_data_parallel(chunks: list[GPTModel], train: TrainSection) -> list[DistributedDataParallel]:
    """Megatron's DDP around each chunk, gradients summed in fp32, sharded for the distributed optimizer."""
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        # gloo has no stream to overlap on, and its hooks would only add calls
        overlap_grad_reduce=not on_cpu(),
        overlap_param_gather=not on_cpu(),
        check_for_nan_in_grad=False,  # the loss and the gradient norm are checked in the loop
    )
    return [
        DistributedDataParallel(chunk.config, config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]


def build_optimizer(model: list[DistributedDataParallel], train: TrainSection) -> MegatronOptimizer:
    """AdamW over this rank's shard. Norms and biases (one-dimensional parameters) get no weight decay."""
    settings = train.optimizer
    config = OptimizerConfig(
        optimizer="adam",
        lr=train.learning_rate,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip_grad or math.inf,  # with 0 Megatron would not measure the norm at all
        bf16=train.precision != "fp32",
        params_dtype=torch.float32 if train.precision == "fp32" else torch.bfloat16,
        use_distributed_optimizer=True,
        overlap_param_gather=not on_cpu(),
    )
    optimizer = get_megatron_optimizer(config, model)
    keep_bucket_padding(optimizer)
    for adam in torch_optimizers(optimizer):
        for group in adam.param_groups:
            if isinstance(adam, torch.optim.AdamW):
                group["fused"] = True  # one pass over the shard; the default makes a dozen
    set_weight_decay(optimizer, settings.weight_decay)
    return optimizer


def set_weight_decay(optimizer: MegatronOptimizer, weight_decay: float) -> None:
    """Write the weight decay into every parameter group: none for norms and biases.

    Megatron only marks those groups with `wd_mult` 0; its own scheduler, which is not used here, forms the product. A
    checkpoint brings its own groups, so the decay is written again after a load.
    """
    for adam in torch_optimizers(optimizer):
        for group in adam.param_groups:
            group["weight_decay"] = weight_decay * group["wd_mult"]


def torch_optimizers(optimizer: MegatronOptimizer) -> Iterator[Any]:
    """The torch (or Transformer Engine) optimizers underneath."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "optimizer", None) is not None:
            yield part.optimizer


def set_learning_rate(optimizer: MegatronOptimizer, rate: float) -> None:
    """Write the rate into every parameter group.

    The loop does so before every step, so the rate of a loaded checkpoint is never used. (Megatron's scheduler would
    keep the parent's bounds, whatever it is told.)
    """
    for adam in torch_optimizers(optimizer):
        for group in adam.param_groups:
            group["lr"] = rate


def learning_rates(optimizer: MegatronOptimizer) -> set[float]:
    """The learning rates that the optimizer has now."""
    return {group["lr"] for adam in torch_optimizers(optimizer) for group in adam.param_groups}


def load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load the state that `sharded_state_dict` described, around two faults of megatron-core 0.16.1 with torch's AdamW.

    Neither occurs with Transformer Engine. Megatron looks up `step` in parameter states that have none (KeyError). And
    all parameters come to share one step counter, which each of them then advances, so Adam's bias correction is wrong
    from the second step on. The workaround takes the counters out while the moments load, and puts them back, each a
    tensor of its own.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    if len(parts) != 1 or not isinstance(parts[0].optimizer, torch.optim.AdamW):
        optimizer.load_state_dict(state)
        return
    part = parts[0]
    moments, sharding = state.pop("param_state"), state.pop("param_state_sharding_type")
    part.load_state_dict(state)
    counters = {parameter: values.pop("step") for parameter, values in part.optimizer.state.items()}
    if sharding == "fully_reshardable":
        part.load_parameter_state_from_fully_reshardable(moments)
    else:
        part.load_parameter_state_from_dp_reshardable(moments)
    for parameter, step in counters.items():
        part.optimizer.state[parameter]["step"] = step.detach().clone().float()


def allocate_moments(optimizer: MegatronOptimizer) -> None:
    """Allocate Adam's state before a load, as a first step would.

    Without Transformer Engine, Megatron-Core 0.16.1 reads the step counters to describe what it will load, and torch's
    AdamW has none before its first step.
    """
    for adam in torch_optimizers(optimizer):
        if not isinstance(adam, torch.optim.AdamW):
            continue
        for group in adam.param_groups:
            for parameter in group["params"]:
                state = adam.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
