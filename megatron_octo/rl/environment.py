"""The environment variables of OpenRLHF's processes, chosen by name so that no secret gets into Ray's logs.

Ray writes its workers' variables into log files, and shows them to everyone who can look at the cluster.
"""

import os
from collections.abc import Mapping

from megatron_octo.rl.session import VARIABLE

EXTRA_VARIABLES = "OCTO_RL_VARIABLES"
"""Names of further variables to pass on, separated by commas."""
SLOTS = "OCTO_RL_SLOTS"
"""How many GPUs Ray is told that the machine has, where it has none."""

_SYSTEM = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "TERM", "COLUMNS", "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "CC", "CXX", "MAX_JOBS",
    "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "VIRTUAL_ENV", "CONDA_PREFIX",
)  # fmt: skip
_WORKERS = (
    VARIABLE, SLOTS, "OCTO_DEVICE", "OCTO_RUNS",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE",
    "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_NO_USAGE_STATS", "VLLM_HOST_IP", "VLLM_USE_V1",
    "VLLM_ATTENTION_BACKEND", "VLLM_LOGGING_LEVEL", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT",
    "DS_ACCELERATOR", "DS_BUILD_OPS", "TORCH_EXTENSIONS_DIR", "TORCH_CUDA_ARCH_LIST", "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_DISTRIBUTED_DEBUG",
    "CUDA_HOME", "CUDA_PATH", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS",
    "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_IB_DISABLE", "NCCL_IB_GID_INDEX", "NCCL_IB_TC", "NCCL_IB_SL",
    "NCCL_IB_TIMEOUT", "NCCL_IB_QPS_PER_CONNECTION", "NCCL_NET", "NCCL_NET_PLUGIN", "NCCL_NET_GDR_LEVEL",
    "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_CUMEM_ENABLE", "NCCL_ALGO",
    "NCCL_IB_PKEY", "NCCL_NET_GDR_READ",
    "NCCL_PROTO", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_TOPO_FILE", "NCCL_CROSS_NIC", "NCCL_BUFFSIZE",
    "GLOO_SOCKET_IFNAME", "UCX_NET_DEVICES", "UCX_TLS", "FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA", "FI_EFA_FORK_SAFE",
    "CUDA_DEVICE_ORDER",
)  # fmt: skip
"""Every worker gets these, on whichever host it runs."""
_DRIVER = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "RAY_USAGE_STATS_ENABLED", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH",
    "RAY_memory_usage_threshold", "RAY_memory_monitor_refresh_ms",
)  # fmt: skip
"""The driver needs these too, to start or join Ray. Ray does not pass them to workers."""


_NETWORK_AND_GPU = ("NCCL_", "GLOO_", "UCX_", "FI_", "CUDA_", "VLLM_", "DS_")
"""Prefixes of variables that a user would miss."""


def driver_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of `octo rl` that OpenRLHF's driver is started with."""
    names = (*_SYSTEM, *_WORKERS, *_DRIVER, *_extra(environment), EXTRA_VARIABLES)
    return _chosen(environment, names)


def worker_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that Ray gives to every worker. They appear in its logs."""
    return _chosen(environment, (*_WORKERS, *_extra(environment)))


def left_out(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of variables for networks and GPUs that are not passed on."""
    dropped = environment.keys() - driver_environment(environment)
    return sorted(name for name in dropped if name.startswith(_NETWORK_AND_GPU))


def _extra(environment: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name.strip() for name in environment.get(EXTRA_VARIABLES, "").split(",") if name.strip())


def _chosen(environment: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: environment[name] for name in names if name in environment}
