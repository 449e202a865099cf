"""The driver of an RL run, a process of its own: `python -m megatron_octo.rl.entry OPTIONS OF OPENRLHF`.

OpenRLHF's entry point is run as it is, in a Ray that was started with this project's hooks.
"""

import os
import runpy
import sys

from megatron_octo.rl import hooks
from megatron_octo.rl.environment import SLOTS, worker_environment
from megatron_octo.rl.session import VARIABLE, Session
from megatron_octo.runtime.local_ray import start_local_ray

_CPUS = 16
"""Cores that Ray is told of on the CPU: OpenRLHF's processes ask for one each and take turns."""


def main() -> None:
    """Start or join Ray, and train."""
    session = Session.from_environment()
    if session is None:
        raise SystemExit(f"{VARIABLE} is not set; start this by `octo rl`")
    hooks.install()
    import ray
    import torch

    runtime = {
        "worker_process_setup_hook": "megatron_octo.rl.hooks.install",
        "env_vars": worker_environment(),
    }
    if session.rl.ray_address is not None:
        ray.init(address=session.rl.ray_address, runtime_env=runtime)
    else:
        # Ray takes GPUs that are not there at their word: on the CPU they are slots for OpenRLHF's processes
        slots = None if torch.cuda.is_available() else int(os.environ[SLOTS])
        start_local_ray(runtime_env=runtime, num_gpus=slots, num_cpus=None if slots is None else _CPUS)
    sys.argv[0] = "train_ppo_ray"
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
