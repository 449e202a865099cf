"""How a stage is trained: batch, optimizer, layout, precision, checkpoints, guards."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from megatron_octo.recipe.base import Problem, Section

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
    """Newest checkpoints to keep. The last one of a stage, and those that branches start from, are always kept."""
    asynchronous: bool = False
    """Write in a separate process while training goes on."""
    resharding: Literal["full", "data_parallel"] = "full"
    """Layout changes a resume may make. `full`: tensor, pipeline and data-parallel sizes. `data_parallel`: only the
    last, and saving is faster on many ranks. The checkpoints that branches start from are always `full`."""


class Guards(Section):
    """When a loss counts as a spike, and a step as hung."""

    spike_deviations: PositiveFloat = 6.0
    """A loss this many standard deviations above the mean of the last `spike_window` steps is logged as a spike."""
    spike_window: int = Field(default=128, gt=0, le=1_000_000)
    hang_factor: float = Field(default=10.0, ge=2.0, le=1e6)
    """A step that takes this many times as long as the slowest recent one has hung: the run ends, and each rank prints
    its stack."""
    hang_seconds: float = Field(default=120.0, ge=1.0, le=1e6)
    """No step counts as hung earlier. The first step, a save, a validation and a load may take ten times as long."""


class Validation(Section):
    """The loss on each source's validation documents."""

    every_steps: NonNegativeInt = 0
    """0: only at the end of a stage."""
    batches: int = Field(default=4, gt=0, le=100_000)
    """Global batches of each source."""


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
    """The peak rate of every stage that has no peak of its own."""
    optimizer: Optimizer = Optimizer()
    loss: Literal["logits", "fused_linear"] = "logits"
    """Cross-entropy from the logits, or from hidden states and the output weight without all logits in memory."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise"] = "tensorwise"
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation: none, attention only, or whole layers."""
    across_documents: Literal["attend"] = "attend"
    """Documents packed into one sequence see each other, as in the paper's framework."""
    data_workers: int = Field(default=0, ge=0, le=256)
    """Processes of each rank that read samples ahead; with 0 the training loop reads them."""
    checkpointing: Checkpointing = Checkpointing()
    guards: Guards = Guards()
    validation: Validation = Validation()
    logging: Logging = Logging()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.sequence_length * self.global_batch_size

    def problems(self) -> Iterator[Problem]:
        """Micro-batches that do not make a global batch under any layout."""
        micro, whole = self.micro_batch_size, self.global_batch_size
        if micro > whole:
            yield Problem("micro_batch_size", micro, f"larger than train.global_batch_size {whole}", "lower it")
        elif whole % micro:
            why = f"does not divide train.global_batch_size {whole}"
            yield Problem("micro_batch_size", micro, why, "choose a divisor")


class Parallel(Section):
    """The parallel layout of ranks. World size = tensor * pipeline * context * data."""

    tensor: Ranks = 1
    pipeline: Ranks = 1
    virtual_pipeline: Ranks | None = None
    """Model chunks on each pipeline rank (interleaved 1F1B). None: one, not interleaved."""
    context: Ranks = 1
    data: Ranks | Literal["auto"] = "auto"
    """`auto`: as many as the machine or the SLURM job has ranks for; 1 on a machine with no GPU."""
    sequence: bool = False
    """Sequence parallelism: norms and dropout are split along the sequence within the tensor-parallel group."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    def problems(self) -> Iterator[Problem]:
        """Sequence parallelism without tensor parallelism, and interleaving without a pipeline."""
        if self.sequence and self.tensor == 1:
            yield Problem("sequence", True, "there is one tensor rank", "set it to false, or raise tensor")
        virtual = self.virtual_pipeline
        if virtual is not None and (self.pipeline < 2 or virtual < 2):
            why = f"interleaving needs pipeline and virtual_pipeline of 2 or more (pipeline is {self.pipeline})"
            yield Problem("virtual_pipeline", virtual, why, "leave it out, or raise both")
