"""A Ray cluster of a run's own, on this machine, that nobody outside it can reach."""

from typing import Any

from megatron_octo.runtime.loopback import stay_on_loopback

ADDRESS = "127.0.0.1"


def keep_on_this_machine(environment: dict[str, str]) -> None:
    """Variables for the driver and all that it starts: gloo, NCCL and vLLM on the loopback interface."""
    stay_on_loopback(environment)
    environment["VLLM_HOST_IP"] = ADDRESS


def start_ray(slots: int | None, cpus: int | None, runtime: dict[str, Any]) -> None:
    """Start Ray in this process.

    Its head, raylet, agents and workers listen where the node's address is, and on all interfaces unless that is
    127.0.0.1. `ray.init` replaces that address by one that other machines reach, which is left out here.
    """
    import ray
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    # "local": without it Ray joins whatever cluster runs on this machine
    ray.init(
        "local",
        runtime_env=runtime,
        include_dashboard=False,
        num_gpus=slots,
        num_cpus=cpus,
        _node_ip_address=ADDRESS,
    )
