"""RL from an exported stage: prompts, algorithm, lengths, reward, alarms. Defaults are the paper's.

Sources: [A] the paper's appendix (arXiv 2506.20512), [R] its repository's evaluation scripts, [O] OpenRLHF 0.11.2's
own default, [C] our choice where they are silent.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from megatron_octo.recipe.base import Problem, Section
from megatron_octo.recipe.openrlhf import option_like, reserved_options
from megatron_octo.recipe.templates import COMPLEX, SIMPLE, check_prompt_template

_GROUP_ALGORITHMS = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")
_MISREAD = "OpenRLHF would take it for an option"


class PromptFile(Section):
    """Problems in a file: JSON lines, one JSON list, or Parquet, compressed or not."""

    kind: Literal["file"]
    path: str
    prompt_key: str = "prompt"
    """A dot steps into nested rows, as in a source's format."""
    answer_key: str = "answer"
    count: PositiveInt | None = None
    """Only the first this many. None: all."""
    max_bad_share: float = Field(default=0.001, ge=0.0, lt=1.0)
    """Share of rows that may have no problem, or an answer that nothing can be compared with. They are left out and
    reported; a larger share stops the run. (MATH8K as released has two empty answers in 8,523 rows.)"""
    answer_after: str | None = Field(default=None, min_length=1)
    """The answer is what follows the last of these in its field: `####` for GSM8K."""
    chat: bool = False
    """The problem is a chat, a list of messages. The tokenizer's chat template is used in place of `rl.template`."""


class BuiltinPrompts(Section):
    """Sums and differences that reasoning-gym generates, none of which is in the prepared text or held out.

    Where text contains nearly all of a kind, `data.practice_problems` keeps some out of it.
    """

    kind: Literal["builtin"]
    count: int = Field(gt=0, le=1_000_000)
    min_terms: int = Field(default=3, ge=2, le=6)
    max_terms: int = Field(default=4, ge=2, le=6)
    digits: int = Field(default=1, ge=1, le=2)
    """Digits of every term."""

    def problems(self) -> Iterator[Problem]:
        """Bounds in the wrong order, and more problems than there are."""
        if self.min_terms > self.max_terms:
            yield Problem("min_terms", self.min_terms, f"above max_terms {self.max_terms}", "lower it")
            return
        numbers = 10 if self.digits == 1 else 90
        most = sum(numbers**terms * 2 ** (terms - 1) for terms in range(self.min_terms, self.max_terms + 1))
        if self.count > most:
            why = f"there are {most:,} such sums and differences"
            yield Problem("count", self.count, why, "lower it, or allow more terms or digits")


Prompts = Annotated[PromptFile | BuiltinPrompts, Field(discriminator="kind")]


class ProblemSet(Section):
    """Problems of a benchmark, in a file of any form that prompts may have."""

    path: str
    problem_key: str = "problem"


class LengthLimit(Section):
    """The most tokens of a response, from a rollout step on."""

    from_step: NonNegativeInt
    tokens: PositiveInt


class Reward(Section):
    r"""The reward of a response. Its last `\boxed{}` decides whether it is right, see docs/grading.md."""

    right: float = 1.0
    wrong: float = 0.0
    """-1 gives rewards of +1 and -1."""
    no_answer: float | None = None
    r"""For a response without a `\boxed{}` that closes. None: the same as wrong."""
    truncated_penalty: NonNegativeFloat = 0.0
    """Subtracted from the reward of a response that was cut at its limit."""
    seconds: PositiveFloat = 5.0
    """CPU time to compare one answer. Beyond it the answer counts as wrong, and as timed out."""
    processes: int = Field(default=2, gt=0, le=256)


class LengthAlarm(Section):
    """When responses blow up, as Llama's did in the paper's first figure. Means are over `window` rollout steps."""

    truncated_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Alarm where more than this share of responses is cut at the limit."""
    growth: PositiveFloat = 4.0
    """Alarm where responses are this many times as long as in the first `window` steps."""
    window: PositiveInt = 8
    stop: bool = False
    """End the run at an alarm. It can resume from its last checkpoint once this is false."""


class Correction(Section):
    """Importance sampling against the mismatch between vLLM's log-probs and the trainer's, as OpenRLHF offers it."""

    level: Literal["off", "token", "seq"] = "token"  # [C]; OpenRLHF's default is off
    mode: Literal["mask", "clip"] = "clip"
    bounds: tuple[float, float] = (0.5, 5.0)  # [O]

    def problems(self) -> Iterator[Problem]:
        """A mode that the level does not have, and bounds in the wrong order."""
        if self.level == "seq" and self.mode == "clip":
            yield Problem("mode", "clip", "it is for level token", "with level seq set mode to mask")
        bounds = list(self.bounds)
        if not self.bounds[0] < self.bounds[1]:
            yield Problem("bounds", bounds, "the first must be below the second", "raise the second")
        elif wrong := option_like(bounds):
            yield Problem("bounds", bounds, f"{wrong[0]}: {_MISREAD}", "give another value")


class RlSection(Section):
    """One RL run, the same for whichever stage it starts from."""

    algorithm: Literal["gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo"] = "group_norm"
    """OpenRLHF's advantage estimators: `gae` is PPO with a critic, `group_norm` is GRPO [A]."""
    prompts: Prompts
    validation: Prompts | None = None
    test_sets: dict[str, ProblemSet] = Field(default={})
    """Benchmarks by name. How many of the prompts are among their problems is counted before the run, printed, and
    written to its result: a benchmark that was practised on no longer judges a model."""
    template: Literal["simple", "complex"] | str = "simple"
    """A name, or a text with {prompt} in it."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, besides its end-of-text token. They stay part of it."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    episodes: PositiveInt = 1
    """Passes over the prompts."""
    prompts_per_step: PositiveInt = 128  # [A]
    samples_per_prompt: PositiveInt = 16  # [A]
    mini_batch_prompts: PositiveInt = 64  # [A] "PPO mini-batch 64"
    """Prompts of one optimizer step, each with all its samples, as verl counts. OpenRLHF shuffles single samples."""
    micro_batch_size: PositiveInt = 8
    """Sequences that a GPU takes at a time, forward and backward."""
    temperature: PositiveFloat = 1.0  # [A]
    learning_rate: PositiveFloat = 1e-6  # [A]
    learning_rate_shape: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
    ] = "constant"  # [C] the paper gives one rate and no schedule
    warmup: NonNegativeFloat = 0.0  # [C] share of the steps
    critic_learning_rate: PositiveFloat = 9e-6  # [O]
    kl_coefficient: NonNegativeFloat = 0.0  # [A]
    clip: PositiveFloat = 0.2  # [O]; the paper does not say
    max_prompt_tokens: PositiveInt = 1024  # [C]
    response_tokens: tuple[LengthLimit, ...] = (LengthLimit(from_step=0, tokens=4096),)  # [A]
    reward: Reward = Reward()
    correction: Correction = Correction()
    alarm: LengthAlarm = LengthAlarm()
    validate_every: PositiveInt = 4  # [A]
    save_every: PositiveInt = 20
    keep: int = Field(default=3, ge=2)
    """Checkpoints. OpenRLHF deletes one before it writes the next, so a single one would leave moments with none."""
    fused_log_probs: bool = True
    """The actor's log-probs and entropy by our operator; false: by OpenRLHF's own code."""
    check_sync: bool = False
    """Compare vLLM's weights with the trainer's after each sync, bit for bit, and end the run at a difference. Costs a
    pass over the weights on both sides at every step."""
    gpus: PositiveInt = 1
    """GPUs of the actor; a critic takes as many again."""
    engines: PositiveInt = 1
    """vLLM engines, with `engine_gpus` each."""
    engine_gpus: PositiveInt = 1
    ray_address: str | None = None
    """An existing cluster (`auto`, or host:port). None: the run starts its own on this machine."""
    openrlhf: dict[str, bool | int | float | str | list[float] | list[str]] = Field(default={})
    """Options of OpenRLHF that have no key here, e.g. `actor.max_norm: 0.5`."""

    @field_validator("template")
    @classmethod
    def _takes_a_prompt(cls, template: str) -> str:
        if template not in ("simple", "complex"):
            check_prompt_template(template)
        return template

    @field_validator("response_tokens")
    @classmethod
    def _ascends(cls, limits: tuple[LengthLimit, ...]) -> tuple[LengthLimit, ...]:
        steps = [limit.from_step for limit in limits]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"from_step {steps}: the first is 0, and each later one above the one before")
        return limits

    @property
    def prompt_template(self) -> str:
        """The template as text."""
        return {"simple": SIMPLE, "complex": COMPLEX}.get(self.template, self.template)

    @property
    def longest_response(self) -> int:
        """The largest of the limits, in tokens."""
        return max(limit.tokens for limit in self.response_tokens)

    def response_limit(self, rollout_step: int) -> int:
        """The most tokens of a response at a rollout step, counted from 0."""
        limit = self.response_tokens[0].tokens
        for later in self.response_tokens:
            if rollout_step >= later.from_step:
                limit = later.tokens
        return limit

    def problems(self) -> Iterator[Problem]:
        """Batches that do not divide, GPUs that do not fit together, and options that are not OpenRLHF's to take."""
        yield from self._batch_problems()
        yield from self._gpu_problems()
        yield from self._option_problems()

    def _batch_problems(self) -> Iterator[Problem]:
        samples, mini = self.samples_per_prompt, self.mini_batch_prompts
        if self.algorithm in _GROUP_ALGORITHMS and samples == 1:
            why = f"{self.algorithm} compares samples of one prompt"
            yield Problem("samples_per_prompt", samples, why, "give 2 or more, or take gae or reinforce")
        if self.prompts.count is not None and self.prompts.count < self.prompts_per_step:
            why = f"there are {self.prompts.count} prompts, which is not one step"
            yield Problem("prompts_per_step", self.prompts_per_step, why, "lower it, or give more prompts")
        if self.prompts_per_step % mini:
            why = f"does not divide rl.prompts_per_step = {self.prompts_per_step}"
            yield Problem("mini_batch_prompts", mini, why, "give a divisor")
        elif mini * samples % (self.micro_batch_size * self.gpus):
            why = (
                f"a mini-batch of {mini} prompts x {samples} samples cannot be made of it on {self.gpus} GPUs (rl.gpus)"
            )
            yield Problem("micro_batch_size", self.micro_batch_size, why, "give a divisor")

    def _gpu_problems(self) -> Iterator[Problem]:
        if self.check_sync and (self.engine_gpus > 1 or self.openrlhf.get("ds.zero_stage") == 3):
            why = "it compares whole tensors, and with engine_gpus above 1 or ds.zero_stage 3 a process holds parts"
            yield Problem("check_sync", True, why, "leave it out")
        engines = self.engines * self.engine_gpus
        if self.openrlhf.get("train.colocate_all") and self.gpus != engines:
            why = f"rl.gpus = {self.gpus} must equal rl.engines x rl.engine_gpus, which is {engines}"
            yield Problem("openrlhf.train.colocate_all", True, why, "change one of them")

    def _option_problems(self) -> Iterator[Problem]:
        reserved = reserved_options(
            has_critic=self.algorithm == "gae",
            has_reference=self.kl_coefficient > 0,
            has_validation=self.validation is not None,
        )
        for name, value in self.openrlhf.items():
            key = reserved.get(name)
            if name in reserved:
                way_out = f"set rl.{key}" if key is not None else "leave it out"
                yield Problem(f"openrlhf.{name}", value, "the `rl` section sets it, or it does not work here", way_out)
            elif isinstance(value, list) and (wrong := option_like(value)):
                yield Problem(f"openrlhf.{name}", value, f"{wrong[0]}: {_MISREAD}", "give another value")
