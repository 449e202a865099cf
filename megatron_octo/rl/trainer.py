"""What is added to OpenRLHF's trainer: the length schedule, metrics.jsonl, and the alarm.

Each is a wrap around a method of a class that OpenRLHF's remote trainer inherits or holds, put there in every Ray
worker before the trainer is made. Their results are handed on as they are.
"""

import functools
import time
from typing import Any

from megatron_octo.errors import TrainingHalted
from megatron_octo.rl.saved import mark_whole
from megatron_octo.rl.session import Session
from megatron_octo.rl.watch import Alarm, append, rollout_numbers, trainer_numbers
from megatron_octo.runtime.records import keep_lines_until


def install_trainer_hooks() -> None:
    """Wrap OpenRLHF's trainer, in the driver and in every worker. Safe to call again."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    if hasattr(SamplesGenerator, "octo"):
        return
    SamplesGenerator.octo = True
    _wrap(RemoteExperienceMaker, "make_experience_batch", lambda *args: _state().around_experience(*args))
    _wrap(
        SamplesGenerator, "generate_eval_samples", lambda *args, **kwargs: _state().around_validation(*args, **kwargs)
    )
    _wrap(SamplesGenerator, "generate_samples", lambda *args, **kwargs: _state().around_sampling(*args, **kwargs))
    # Ray has copied the base's methods to the class of its actor, and sends that class from the driver by value: what
    # replaces them must be functions that a worker finds under their names
    actor_class = PPOTrainer.__ray_metadata__.modified_class
    actor_class.init_checkpoint_states = init_checkpoint_states
    actor_class.train_step = train_step
    actor_class.save_logs_and_checkpoints = save_logs_and_checkpoints


def _wrap(owner: type, name: str, around: Any) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, self), *args, **kwargs)

    setattr(owner, name, method)


def init_checkpoint_states(trainer: Any) -> Any:
    """`BasePPOTrainer.init_checkpoint_states`, heard."""
    return _state().around_resume(_of_base(trainer, "init_checkpoint_states"))


def train_step(trainer: Any, rollout_samples: Any, global_step: int) -> Any:
    """`BasePPOTrainer.train_step`, heard."""
    return _state().around_step(_of_base(trainer, "train_step"), rollout_samples, global_step)


def save_logs_and_checkpoints(trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """`BasePPOTrainer.save_logs_and_checkpoints`, heard; at the step of an alarm that ends the run, it saves."""
    if _state().halted is not None:
        trainer.args.ckpt.save_steps = 1
    return _state().around_save(_of_base(trainer, "save_logs_and_checkpoints"), *args, **kwargs)


def _of_base(trainer: Any, name: str) -> Any:
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    return functools.partial(getattr(BasePPOTrainer, name), trainer)


@functools.cache
def _state() -> "_State":
    session = Session.from_environment()
    if session is None:
        raise RuntimeError("this trainer is started by `octo rl`, which says what to watch")
    return _State(session)


class _State:
    """Of the one trainer in this process."""

    def __init__(self, session: Session) -> None:
        self.session, self.step = session, 0
        self.alarm = Alarm(session.rl.alarm)
        self.sampled: dict[str, float] = {}
        self.halted: str | None = None
        self.generation_seconds = 0.0

    def around_resume(self, original: Any) -> Any:
        states = original()
        self.step = int(states["global_step"])
        self.alarm = Alarm(self.session.rl.alarm, keep_lines_until(self.session.metrics, self.step).kept)
        keep_lines_until(self.session.validation, self.step)
        return states

    def around_sampling(self, original: Any, **kwargs: Any) -> Any:
        # counted from the step that is restored with the checkpoint, so that a restart goes on in the schedule
        start = time.monotonic()
        samples = original(**kwargs | {"max_new_tokens": self.session.rl.response_limit(self.step)})
        self.generation_seconds = time.monotonic() - start
        return samples

    def around_validation(self, original: Any, **kwargs: Any) -> Any:
        samples = original(**kwargs | {"max_new_tokens": self.session.rl.response_limit(self.step)})
        for sample in samples:  # OpenRLHF's pass rate is the mean of rewards, whatever a right answer earns
            sample.rewards = sample.scores
        right = [float(sample.scores[0]) for sample in samples]
        append(self.session.validation, {"step": self.step, "accuracy": sum(right) / len(right), "samples": len(right)})
        return samples

    def around_experience(self, original: Any, *args: Any) -> Any:
        experiences = original(*args)
        self.sampled = rollout_numbers(experiences)
        return experiences

    def around_step(self, original: Any, rollout_samples: Any, global_step: int) -> Any:
        limit = self.session.rl.response_limit(global_step)
        status, step = original(rollout_samples, global_step)
        record = {"step": step, "time": time.time(), "response_limit": limit, **self.sampled, **trainer_numbers(status)}
        record["seconds_generation"] = self.generation_seconds
        why = self.alarm.observe(record)
        if why is not None:
            record["alarm"] = why
            if self.session.rl.alarm.stop:
                self.halted = f"step {step}: {why}; the run goes on from there with rl.alarm.stop=false"
        append(self.session.metrics, record)
        status |= {f"octo/{name}": value for name, value in record.items() if name not in ("step", "time", "alarm")}
        self.step = step
        return status, step

    def around_save(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        mark_whole(self.session.folder / "checkpoints")
        if self.halted is not None:
            raise TrainingHalted(self.halted)
        return result
