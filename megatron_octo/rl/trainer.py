"""This project's additions to OpenRLHF's trainer: the length schedule, metrics.jsonl, and the alarm.

Each wraps a method of a class that OpenRLHF's remote trainer inherits from or holds. The wraps are installed in every
Ray worker before the trainer is made. They return what the original method returns.
"""

import functools
import time
from typing import Any

from megatron_octo.errors import TrainingHalted
from megatron_octo.rl.checkpoints import mark_complete
from megatron_octo.rl.session import Session
from megatron_octo.rl.watch import Alarm, append_record, rollout_metrics, trainer_metrics
from megatron_octo.runtime.records import truncate_records


def install_trainer_hooks() -> None:
    """Wrap OpenRLHF's trainer, in the driver and in every worker. Safe to call again."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    if hasattr(SamplesGenerator, "octo"):
        return
    SamplesGenerator.octo = True
    _wrap(RemoteExperienceMaker, "make_experience_batch", "around_experience")
    _wrap(SamplesGenerator, "generate_eval_samples", "around_validation")
    _wrap(SamplesGenerator, "generate_samples", "around_sampling")
    # Ray copies the base class's methods onto the class of its actor, and the driver sends that class by value. The
    # replacements must therefore be functions that a worker can import by name
    actor_class = PPOTrainer.__ray_metadata__.modified_class
    actor_class.init_checkpoint_states = init_checkpoint_states
    actor_class.train_step = train_step
    actor_class.save_logs_and_checkpoints = save_logs_and_checkpoints


def _wrap(owner: type, name: str, wrapper: str) -> None:
    """Replace a method by one of `_RunState`, which gets the bound original as its first argument."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(_run_state(), wrapper)(functools.partial(original, self), *args, **kwargs)

    setattr(owner, name, method)


def init_checkpoint_states(trainer: Any) -> Any:
    """Replaces `BasePPOTrainer.init_checkpoint_states`."""
    return _run_state().around_resume(_original(trainer, "init_checkpoint_states"))


def train_step(trainer: Any, rollout_samples: Any, global_step: int) -> Any:
    """Replaces `BasePPOTrainer.train_step`."""
    return _run_state().around_step(_original(trainer, "train_step"), rollout_samples, global_step)


def save_logs_and_checkpoints(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Replaces `BasePPOTrainer.save_logs_and_checkpoints`. After an alarm that ends the run, it always saves."""
    if _run_state().halted is not None:
        trainer.args.ckpt.save_steps = 1
    return _run_state().around_save(_original(trainer, "save_logs_and_checkpoints"), *args, **kwargs)


def _original(trainer: Any, name: str) -> Any:
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    return functools.partial(getattr(BasePPOTrainer, name), trainer)


@functools.cache
def _run_state() -> "_RunState":
    return _RunState(Session.required())


class _RunState:
    """The run as the one trainer of this process has seen it so far."""

    def __init__(self, session: Session) -> None:
        self.rl, self.folder = session.rl, session.folder
        self.step = 0
        self.alarm = Alarm(session.rl.alarm)
        self.rollout: dict[str, float] = {}
        self.halted: str | None = None
        self.generation_seconds = 0.0

    def around_resume(self, original: Any) -> Any:
        states = original()
        self.step = int(states["global_step"])
        self.alarm = Alarm(self.rl.alarm, truncate_records(self.folder.metrics, self.step).kept)
        truncate_records(self.folder.validation_scores, self.step)
        return states

    def around_sampling(self, original: Any, **kwargs: Any) -> Any:
        # `step` is restored from the checkpoint, so that the schedule continues after a resume
        start = time.monotonic()
        samples = original(**kwargs | {"max_new_tokens": self.rl.response_limit(self.step)})
        self.generation_seconds = time.monotonic() - start
        return samples

    def around_validation(self, original: Any, **kwargs: Any) -> Any:
        samples = original(**kwargs | {"max_new_tokens": self.rl.response_limit(self.step)})
        for sample in samples:  # OpenRLHF's pass rate is the mean reward, which depends on `rl.reward`
            sample.rewards = sample.scores
        right = [float(sample.scores[0]) for sample in samples]
        record = {"step": self.step, "accuracy": sum(right) / len(right), "samples": len(right)}
        append_record(self.folder.validation_scores, record)
        return samples

    def around_experience(self, original: Any, *args: Any) -> Any:
        experiences = original(*args)
        self.rollout = rollout_metrics(experiences)
        return experiences

    def around_step(self, original: Any, rollout_samples: Any, global_step: int) -> Any:
        limit = self.rl.response_limit(global_step)
        status, step = original(rollout_samples, global_step)
        record = {"step": step, "time": time.time(), "response_limit": limit, **self.rollout, **trainer_metrics(status)}
        record["seconds_generation"] = self.generation_seconds
        alarm = self.alarm.observe(record)
        if alarm is not None:
            record["alarm"] = alarm
            if self.rl.alarm.stop:
                self.halted = f"step {step}: {alarm}; the run goes on from there with rl.alarm.stop=false"
        append_record(self.folder.metrics, record)
        status |= {f"octo/{name}": value for name, value in record.items() if name not in ("step", "time", "alarm")}
        self.step = step
        return status, step

    def around_save(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        mark_complete(self.folder.checkpoints)
        if self.halted is not None:
            raise TrainingHalted(self.halted)
        return result
