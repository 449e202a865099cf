"""A Ray cluster of this process's own, on this machine, that nobody outside it can reach."""

from importlib import import_module
from typing import Any

from megatron_octo.runtime.loopback import stay_on_loopback

ADDRESS = "127.0.0.1"


def keep_on_this_machine(environment: dict[str, str]) -> None:
    """Set variables for processes of such a cluster: gloo, NCCL and vLLM stay on the loopback interface."""
    stay_on_loopback(environment)
    environment["VLLM_HOST_IP"] = ADDRESS


def start_local_ray(**options: Any) -> None:
    """Start Ray in this process.

    Its head, raylet, agents and workers listen where the node's address is, and on all interfaces unless that is
    127.0.0.1. `ray.init` replaces that address by one that other machines reach, which is left out here.
    """
    ray = import_module("ray")
    services: Any = import_module("ray._private.services")
    services.resolve_ip_for_localhost = lambda host: host
    # "local": without it Ray joins whatever cluster runs on this machine
    ray.init("local", include_dashboard=False, _node_ip_address=ADDRESS, **options)
