"""The driver of an RL run, a process of its own: `python -m megatron_octo.rl.entry`, followed by OpenRLHF's options.

OpenRLHF's own entry point runs unmodified, in a Ray that starts this project's hooks in each worker.
"""

import os
import runpy
import sys

from megatron_octo.rl import hooks
from megatron_octo.rl.environment import SLOTS, worker_environment
from megatron_octo.rl.session import Session
from megatron_octo.runtime.local_ray import start_local_ray

_CPUS = 16
"""Cores that Ray is told of on a machine without CUDA. Each process of OpenRLHF asks for one, and they take turns."""


def main() -> None:
    """Start or join Ray, and train."""
    session = Session.required()
    hooks.install()
    import ray
    import torch

    runtime = {
        "worker_process_setup_hook": "megatron_octo.rl.hooks.install",
        "env_vars": worker_environment(),
    }
    if session.rl.ray_address is not None:
        ray.init(address=session.rl.ray_address, runtime_env=runtime)
    elif torch.cuda.is_available():
        start_local_ray(runtime_env=runtime)
    else:
        # Ray does not check the number of GPUs: without CUDA they are slots for OpenRLHF's processes
        start_local_ray(runtime_env=runtime, num_gpus=int(os.environ[SLOTS]), num_cpus=_CPUS)
    sys.argv[0] = "train_ppo_ray"
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
