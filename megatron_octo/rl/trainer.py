"""What is added to OpenRLHF's trainer: the length schedule, metrics.jsonl, and the alarm.

Each is a wrap around a method of a class that OpenRLHF's remote trainer inherits or holds, put there in every Ray
worker before the trainer is made. Their results are handed on as they are.
"""

import functools
import time
from typing import Any

from megatron_octo.errors import TrainingHalted
from megatron_octo.rl.session import Session
from megatron_octo.rl.watch import Alarm, append, keep_until, rollout_numbers, trainer_numbers


def install_trainer_hooks(session: Session) -> None:
    """Wrap OpenRLHF's trainer in this process. Safe to call again."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    if hasattr(BasePPOTrainer, "octo"):
        return
    state = _State(session)
    BasePPOTrainer.octo = state
    _wrap(BasePPOTrainer, "init_checkpoint_states", state.around_resume)
    _wrap(BasePPOTrainer, "train_step", state.around_step)
    _wrap(BasePPOTrainer, "save_logs_and_checkpoints", state.around_save)
    _wrap(RemoteExperienceMaker, "make_experience_batch", state.around_experience)
    _wrap(SamplesGenerator, "generate_samples", state.around_sampling)


def _wrap(owner: type, name: str, around: Any) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, self), *args, **kwargs)

    setattr(owner, name, method)


class _State:
    """Of the one trainer in this process."""

    def __init__(self, session: Session) -> None:
        self.session, self.step = session, 0
        self.alarm = Alarm(session.rl.alarm)
        self.sampled: dict[str, float] = {}
        self.halted: str | None = None

    def around_resume(self, original: Any) -> Any:
        states = original()
        self.step = int(states["global_step"])
        self.alarm = Alarm(self.session.rl.alarm, keep_until(self.session.metrics, self.step))
        return states

    def around_sampling(self, original: Any, **kwargs: Any) -> Any:
        # counted from the step that is restored with the checkpoint, so that a restart goes on in the schedule
        return original(**kwargs | {"max_new_tokens": self.session.rl.response_limit(self.step)})

    def around_experience(self, original: Any, *args: Any) -> Any:
        experiences = original(*args)
        self.sampled = rollout_numbers(experiences)
        return experiences

    def around_step(self, original: Any, rollout_samples: Any, global_step: int) -> Any:
        limit = self.session.rl.response_limit(global_step)
        status, step = original(rollout_samples, global_step)
        record = {"step": step, "time": time.time(), "response_limit": limit, **self.sampled, **trainer_numbers(status)}
        append(self.session.metrics, record)
        status |= {f"octo/{name}": value for name, value in record.items() if name not in ("step", "time")}
        self.step = step
        if (why := self.alarm.observe(record)) is not None:
            print(f"rl: alarm at step {step}: {why}", flush=True)
            if self.session.rl.alarm.stop:
                self.halted = f"step {step}: {why}; go on with rl.alarm.stop: false, or from an earlier checkpoint"
        return status, step

    def around_save(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if self.halted is not None:
            raise TrainingHalted(self.halted)
        return result
