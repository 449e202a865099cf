"""The driver of an RL run, a process of its own: `python -m megatron_octo.rl.entry OPTIONS OF OPENRLHF`.

OpenRLHF's entry point is run as it is, in a Ray that was started with this project's hooks.
"""

import os
import runpy
import sys

from megatron_octo.rl import hooks
from megatron_octo.rl.session import VARIABLE, Session

_CARRIED = ("OCTO_", "VLLM_", "DS_", "HF_", "NCCL_", "OMP_")
"""Variables of the driver that its workers get, wherever they run."""

SLOTS = "OCTO_RL_SLOTS"
"""GPUs that Ray is told of where there are none."""
_CPUS = 16
"""And cores: OpenRLHF's processes ask for one each and take turns."""


def main() -> None:
    """Start or join Ray, and train."""
    session = Session.from_environment()
    if session is None:
        raise SystemExit(f"{VARIABLE} is not set; start this by `octo rl`")
    hooks.install()
    import ray
    import torch

    # Ray shows these to whoever may look at the cluster
    variables = {k: v for k, v in os.environ.items() if k.startswith(_CARRIED) and "TOKEN" not in k}
    runtime = {"worker_process_setup_hook": "megatron_octo.rl.hooks.install", "env_vars": variables}
    if session.rl.ray_address is not None:
        ray.init(address=session.rl.ray_address, runtime_env=runtime)
    else:
        # Ray takes GPUs that are not there at their word: on the CPU they are slots for OpenRLHF's processes
        slots = None if torch.cuda.is_available() else int(os.environ[SLOTS])
        cpus = None if slots is None else _CPUS
        # "local": without it Ray joins whatever cluster runs on this machine
        ray.init("local", runtime_env=runtime, include_dashboard=False, num_gpus=slots, num_cpus=cpus)
    sys.argv[0] = "train_ppo_ray"
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
