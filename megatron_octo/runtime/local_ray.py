"""A private Ray cluster on this machine, which no other machine can reach."""

from importlib import import_module
from typing import Any

from megatron_octo.runtime.loopback import stay_on_loopback

ADDRESS = "127.0.0.1"


def keep_on_this_machine(environment: dict[str, str]) -> None:
    """Set variables for its processes, so that gloo, NCCL and vLLM use only the loopback interface."""
    stay_on_loopback(environment)
    environment["VLLM_HOST_IP"] = ADDRESS


def start_local_ray(**options: Any) -> None:
    """Start Ray in this process.

    Ray's processes listen on all interfaces unless the node's address is 127.0.0.1. `ray.init` replaces that address
    by one that other machines can reach; that replacement is disabled here.
    """
    ray = import_module("ray")
    services: Any = import_module("ray._private.services")
    services.resolve_ip_for_localhost = lambda host: host
    # "local": otherwise Ray joins any cluster that runs on this machine
    ray.init("local", include_dashboard=False, _node_ip_address=ADDRESS, **options)
