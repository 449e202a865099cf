"""The model chunks of this rank."""

import torch
from megatron.core import parallel_state

from megatron_octo.model.config import padded_vocab_size, transformer_config
from megatron_octo.model.gpt import GPTModelWithLoss
from megatron_octo.model.spec import layer_spec
from megatron_octo.recipe import Architecture, Parallel
from megatron_octo.recipe.train import TrainSection


def build_model(
    architecture: Architecture, train: TrainSection, layout: Parallel, device: torch.device
) -> list[GPTModelWithLoss]:
    """This rank's GPTModel chunks: one, or one for each virtual pipeline stage. Their weights are not final yet.

    Process groups must have been started with the same layout.
    """
    config = transformer_config(architecture, train, layout)
    virtual = layout.virtual_pipeline
    chunks = []
    for stage in range(virtual or 1):
        vp_stage = stage if virtual is not None else None
        where = {"ignore_virtual": False, "vp_stage": vp_stage}
        chunk = GPTModelWithLoss(
            config=config,
            transformer_layer_spec=layer_spec(config, vp_stage),
            true_vocab_size=architecture.vocab_size,
            fused_linear_loss=train.loss == "fused_linear",
            vocab_size=padded_vocab_size(architecture.vocab_size, layout.tensor),
            max_sequence_length=train.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(**where),
            post_process=parallel_state.is_pipeline_last_stage(**where),
            share_embeddings_and_output_weights=architecture.tie_word_embeddings,
            position_embedding_type="rope",
            rotary_base=architecture.rope_theta,
            rope_scaling=architecture.rope_scaling is not None,
            rope_scaling_factor=architecture.rope_scaling.factor if architecture.rope_scaling is not None else 1.0,
            parallel_output=True,
            vp_stage=vp_stage,
        )
        chunks.append(chunk.to(device))
    return chunks
