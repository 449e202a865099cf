"""How a stage is trained: batch, optimizer, layout, precision, checkpoints, guards."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from megatron_octo.recipe.base import Section

Ranks = Annotated[int, Field(gt=0, le=1 << 16)]


class Optimizer(Section):
    """AdamW. Weight decay is not applied to norms and biases."""

    weight_decay: NonNegativeFloat = 0.1
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    epsilon: PositiveFloat = 1e-8
    clip_grad: NonNegativeFloat = 1.0
    """Largest global L2 norm of the gradient; 0 switches clipping off."""


class Checkpointing(Section):
    """When checkpoints are written, and how many are kept."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = 2
    """Newest checkpoints kept. The last of a stage, and those a branch starts from, are always kept."""
    asynchronous: bool = False
    """Write in a process of its own while training goes on."""
    resharding: Literal["full", "data_parallel"] = "full"
    """What may change at a resume. `full`: tensor, pipeline and data-parallel sizes. `data_parallel`: only the
    last, and saving is faster at many ranks. The checkpoints that branches start from are always `full`."""


class Guards(Section):
    """What stops or flags a run."""

    spike_deviations: PositiveFloat = 6.0
    """A loss so many standard deviations above the mean of `spike_window` steps is logged as a spike."""
    spike_window: int = Field(default=128, gt=0, le=1_000_000)
    hang_factor: float = Field(default=10.0, ge=2.0, le=1e6)
    """A step that takes so many times as long as the slowest of the recent ones has hung: the run ends, and each rank
    shows its stack."""
    hang_seconds: float = Field(default=120.0, ge=1.0, le=1e6)
    """No step has hung before this. The first step, a save, a validation and a load may take ten times as long."""


class Validation(Section):
    """Loss on each source's held-out documents."""

    every_steps: NonNegativeInt = 0
    """0: only at the end of a stage."""
    batches: int = Field(default=4, gt=0, le=100_000)
    """Global batches a source."""


class Logging(Section):
    """Where curves go besides metrics.jsonl."""

    tensorboard: bool = True
    wandb_project: str | None = None


class TrainSection(Section):
    """Settings shared by all stages."""

    sequence_length: int = Field(gt=0, le=1 << 24)
    micro_batch_size: int = Field(gt=0, le=1 << 20)
    global_batch_size: int = Field(gt=0, le=1 << 24)
    """In sequences."""
    learning_rate: PositiveFloat
    """The constant rate of the stable stage; every shape is a multiple of it."""
    optimizer: Optimizer = Optimizer()
    loss: Literal["logits", "fused_linear"] = "logits"
    """Cross-entropy over the logits; or from hidden states and the output weight, without whole logits in memory."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise"] = "tensorwise"
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: none, attention only, or whole layers."""
    across_documents: Literal["attend"] = "attend"
    """Documents packed into one sequence see each other, as in the paper's framework."""
    data_workers: int = Field(default=0, ge=0, le=256)
    """Processes a rank that read samples ahead; 0 reads in the loop."""
    checkpointing: Checkpointing = Checkpointing()
    guards: Guards = Guards()
    validation: Validation = Validation()
    logging: Logging = Logging()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.sequence_length * self.global_batch_size


class Parallel(Section):
    """The layout. World size = tensor * pipeline * context * data."""

    tensor: Ranks = 1
    pipeline: Ranks = 1
    virtual_pipeline: Ranks | None = None
    """Model chunks on each pipeline rank (interleaved 1F1B). None: one, not interleaved."""
    context: Ranks = 1
    data: Ranks | Literal["auto"] = "auto"
    """`auto`: what the machine or the SLURM job leaves; 1 on a machine with no GPU."""
    sequence: bool = False
    """Sequence parallelism: norms and dropout split along the sequence within the tensor group."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context
