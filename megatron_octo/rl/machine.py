"""Checks of the machine before an RL run: packages, and GPUs here or in an existing Ray cluster."""

import socket
from importlib.metadata import PackageNotFoundError, version

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.recipe.rl import RlSection
from megatron_octo.rl.arguments import OPENRLHF

_PACKAGES = ("openrlhf", "ray", "deepspeed", "math-verify")
_CONNECT_SECONDS = 10.0


def check_packages() -> None:
    """Refuse missing packages, and a version of OpenRLHF that the hooks do not fit.

    Raises:
        RuntimeSetupError: which package, and how to install it.
    """
    missing = []
    for package in _PACKAGES:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise RuntimeSetupError(f"RL needs {', '.join(missing)}, not installed here; run `bash tools/install.sh`")
    if (found := version("openrlhf")) != OPENRLHF:
        raise RuntimeSetupError(
            f"OpenRLHF {found} is installed, and octo hooks into {OPENRLHF} alone; run `pip install --no-deps "
            f"openrlhf=={OPENRLHF}`"
        )


def has_cuda() -> bool:
    """Whether this machine has a CUDA GPU. Without one, OpenRLHF and vLLM run on the CPU."""
    import torch

    return torch.cuda.is_available()


def check_gpus(rl: RlSection, needed: int) -> None:
    """Refuse a run that needs more GPUs than Ray has.

    Without CUDA and without an existing cluster there is nothing to check: our own Ray is started with as many GPU
    slots as the run needs.

    Raises:
        RuntimeSetupError: too few GPUs, or no Ray cluster at `rl.ray_address`.
    """
    if rl.ray_address is not None:
        found = _gpus_of_cluster(rl.ray_address)
    elif has_cuda():
        import torch

        found = torch.cuda.device_count()
    else:
        return
    if needed > found:
        raise RuntimeSetupError(
            f"rl asks for {needed} GPUs (rl.gpus {rl.gpus}, rl.engines {rl.engines} x rl.engine_gpus "
            f"{rl.engine_gpus}), and Ray has {found}; lower them, or share: rl.openrlhf={{train.colocate_all: true, "
            "vllm.enable_sleep: true, ds.enable_sleep: true, vllm.gpu_memory_utilization: 0.5}}"
        )


def _gpus_of_cluster(address: str) -> int:
    import ray

    _check_connection(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from None
    gpus = int(ray.cluster_resources().get("GPU", 0))
    ray.shutdown()
    return gpus


def _check_connection(address: str) -> None:
    """Refuse an address at which nothing listens. Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, where Ray fails at once
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> RuntimeSetupError:
    return RuntimeSetupError(
        f"rl.ray_address = {address}: no Ray cluster answers there ({error}); start one with `ray start --head`, or "
        "leave the key out"
    )
