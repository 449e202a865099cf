"""RL from an exported stage: prompts, algorithm, lengths, reward, what is watched. Defaults are the paper's.

Sources: [A] the paper's appendix (arXiv 2506.20512), [R] its repository's evaluation scripts, [O] OpenRLHF 0.11.2's
own default, [C] our choice where they are silent.
"""

from string import Formatter
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from megatron_octo.recipe.base import Section

SIMPLE = "Question:{prompt}\nAnswer:"
"""The paper's simple template [A]."""
COMPLEX = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "reasons step by step and puts the final answer inside \\boxed{{}}.\nUser: {prompt}\nAssistant:"
)
"""A conversation that asks for the answer in a box, as the paper's complex template does [A]; the wording is ours."""


class PromptFile(Section):
    """Problems in a file: JSON lines, one JSON list, or Parquet, compressed or not."""

    kind: Literal["file"]
    path: str
    prompt_key: str = "prompt"
    """A dot steps into what is nested, as in a source's format."""
    answer_key: str = "answer"
    count: PositiveInt | None = None
    """The first so many."""
    max_bad_share: float = Field(default=0.001, ge=0.0, lt=1.0)
    """Rows with no problem, or an answer that nothing can be compared with, are left out and named up to this share,
    and stop the run beyond it. (MATH8K as released has two empty answers in 8,523 rows.)"""
    answer_after: str | None = Field(default=None, min_length=1)
    """The answer is what follows the last of these in its field: `####` for GSM8K."""
    chat: bool = False
    """The problem is a chat, a list of messages, and is put into the tokenizer's chat template; `rl.template` is then
    not used."""


class BuiltinPrompts(Section):
    """Sums and differences made by reasoning-gym: none stands in the prepared text, or among the held-out problems.

    Where text holds nearly all of a kind, `data.practice_problems` keeps some out of it.
    """

    kind: Literal["builtin"]
    count: int = Field(gt=0, le=1_000_000)
    min_terms: int = Field(default=3, ge=2, le=6)
    max_terms: int = Field(default=4, ge=2, le=6)
    digits: int = Field(default=1, ge=1, le=2)
    """Of every term."""


Prompts = Annotated[PromptFile | BuiltinPrompts, Field(discriminator="kind")]


class ProblemSet(Section):
    """Problems of a benchmark, in a file such as those of prompts."""

    path: str
    problem_key: str = "problem"


class LengthLimit(Section):
    """Most tokens of a response from a rollout step on."""

    from_step: NonNegativeInt
    tokens: PositiveInt


class Reward(Section):
    r"""What a response earns. Right is decided by its last `\boxed{}`, see docs/grading.md."""

    right: float = 1.0
    wrong: float = 0.0
    """-1 gives the form +1/-1."""
    no_answer: float | None = None
    r"""Without a `\boxed{}` that closes; None: as wrong."""
    truncated_penalty: NonNegativeFloat = 0.0
    """Taken off a response that was cut at its limit."""
    seconds: PositiveFloat = 5.0
    """CPU time to compare one answer; beyond it the answer is wrong, and said to have timed out."""
    processes: int = Field(default=2, gt=0, le=256)


class LengthAlarm(Section):
    """When responses blow up, as Llama's did in the paper's first figure. Means are over `window` rollout steps."""

    truncated_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Alarm where more than this share is cut at the limit."""
    growth: PositiveFloat = 4.0
    """Alarm where responses are so many times as long as in the first `window` steps."""
    window: PositiveInt = 8
    stop: bool = False
    """End the run at an alarm. It can go on from its last checkpoint once this is false."""


class Correction(Section):
    """Importance sampling against the mismatch of vLLM's log-probs and the trainer's, as OpenRLHF offers it."""

    level: Literal["off", "token", "seq"] = "token"  # [C]; OpenRLHF's default is off
    mode: Literal["mask", "clip"] = "clip"
    bounds: tuple[float, float] = (0.5, 5.0)  # [O]

    @model_validator(mode="after")
    def _fits(self) -> "Correction":
        if self.level == "seq" and self.mode == "clip":
            raise ValueError("mode clip is for level token; with level seq set mode to mask")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds {list(self.bounds)}: the first must be below the second")
        return self


class RlSection(Section):
    """One RL run, the same for whichever stage it starts from."""

    algorithm: Literal["gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo"] = "group_norm"
    """OpenRLHF's advantage estimators: `gae` is PPO with a critic, `group_norm` GRPO [A]."""
    prompts: Prompts
    validation: Prompts | None = None
    test_sets: dict[str, ProblemSet] = Field(default={})
    """Benchmarks by name. How many of the prompts stand among their problems is counted before the run, printed, and
    written to its result: a model practised on them is no longer judged by them."""
    template: Literal["simple", "complex"] | str = "simple"
    """A name, or a text with {prompt} in it."""
    stop: tuple[str, ...] = ()
    """Texts that end a response besides its end-of-text token. They stay part of it."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    episodes: PositiveInt = 1
    """Passes over the prompts."""
    prompts_per_step: PositiveInt = 128  # [A]
    samples_per_prompt: PositiveInt = 16  # [A]
    mini_batch_prompts: PositiveInt = 64  # [A] "PPO mini-batch 64"
    """Of one optimizer step, in prompts' worth of samples, as verl counts them; OpenRLHF shuffles single samples."""
    micro_batch_size: PositiveInt = 8
    """Sequences a GPU at a time, forward and backward."""
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
    ] = "constant"  # [C] the paper names one rate and no shape
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
    """Checkpoints. OpenRLHF deletes one before it writes the next, so with one there would be moments with none."""
    fused_log_probs: bool = True
    """The actor's log-probs and entropy by our operator; false: by OpenRLHF's own code."""
    check_sync: bool = False
    """Compare vLLM's weights with the trainer's after each sync, bit for bit; a difference ends the run. Costs a pass
    over the weights on both sides at every step."""
    gpus: PositiveInt = 1
    """For the actor; as many again for the critic."""
    engines: PositiveInt = 1
    """vLLM engines, of `engine_gpus` each."""
    engine_gpus: PositiveInt = 1
    ray_address: str | None = None
    """An existing cluster (`auto`, or host:port); None: one of its own on this machine."""
    openrlhf: dict[str, bool | int | float | str | list[float] | list[str]] = Field(default={})
    """Options of OpenRLHF that have no name here, e.g. `actor.max_norm: 0.5`."""

    @model_validator(mode="after")
    def _can_compare(self) -> "RlSection":
        by_group = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")
        if self.algorithm in by_group and self.samples_per_prompt == 1:
            raise ValueError(
                f"samples_per_prompt = 1: {self.algorithm} compares samples of one prompt; give 2 or more, or take "
                "gae or reinforce"
            )
        return self

    @field_validator("template")
    @classmethod
    def _takes_a_prompt(cls, template: str) -> str:
        if template in ("simple", "complex"):
            return template
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise ValueError(
                f"not a template ({error}); write {{prompt}} for the problem, {{{{ and }}}} for braces"
            ) from None
        fields = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
        if wrong := [name for name, spec, conversion in fields if name != "prompt" or spec or conversion]:
            # an attribute, an index or a width would reach into the text, or make it as long as it says
            raise ValueError(
                f"not a template ({{{wrong[0]}...}}): only {{prompt}} alone is filled in; write {{{{ and }}}} for "
                "braces"
            )
        if not fields:
            raise ValueError("a template without {prompt}; write it where the problem goes")
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
        """Most tokens of a response at a rollout step, counted from 0."""
        limit = self.response_tokens[0].tokens
        for later in self.response_tokens:
            if rollout_step >= later.from_step:
                limit = later.tokens
        return limit
