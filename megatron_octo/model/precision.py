"""Precision: fp32, BF16, or FP8 matrix products over BF16 through Transformer Engine."""

from typing import Any

import torch

from megatron_octo.errors import ModelError
from megatron_octo.recipe.train import TrainSection
from megatron_octo.runtime.device import on_cpu


def precision_fields(train: TrainSection) -> dict[str, Any]:
    """Fields of TransformerConfig for the recipe's `train.precision`.

    FP8 is `hybrid` (E4M3 forward, E5M2 for gradients). The first and the last layer stay in BF16, except with the
    `delayed` recipe, for which Megatron-Core refuses it. Master weights, gradients and Adam's moments are always fp32.

    Raises:
        ModelError: FP8 without a CUDA device.
    """
    if train.precision == "fp32":
        return {"params_dtype": torch.float32, "pipeline_dtype": torch.float32, "autocast_dtype": torch.float32}
    fields: dict[str, Any] = {
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
        "autocast_dtype": torch.bfloat16,
        "attention_softmax_in_fp32": True,
    }
    if train.precision == "fp8":
        if on_cpu():
            raise ModelError("train.precision = fp8: FP8 needs a Hopper GPU or newer; set train.precision=bf16")
        fields |= {"fp8": "hybrid", "fp8_recipe": train.fp8_recipe, "fp8_margin": 0}
        if train.fp8_recipe == "delayed":
            # Megatron-Core's default history is one step, so a single spike would set the scale
            fields |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
        else:
            fields |= {
                "first_last_layers_bf16": True,
                "num_layers_at_start_in_bf16": 1,
                "num_layers_at_end_in_bf16": 1,
            }
    return fields
