"""Our changes to OpenRLHF's processes: in Ray's workers by their setup hook, in vLLM's by a plugin.

Importing OpenRLHF takes seconds, so processes that belong to no RL run do not import it.
"""

import os

from megatron_octo.rl.session import Session
from megatron_octo.runtime.loopback import keep_stores_on_loopback


def install() -> None:
    """Change what this process needs; nothing if it belongs to no RL run. Ray's `worker_process_setup_hook`."""
    session = Session.from_environment()
    if session is None:
        return
    keep_stores_on_loopback()
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from megatron_octo.rl.cpu import install_rl_on_cpu

        install_rl_on_cpu()
    if session.rl.fused_log_probs:
        from megatron_octo.rl.actor import install_fused_actor

        install_fused_actor()
    from megatron_octo.rl.trainer import install_trainer_hooks

    install_trainer_hooks()
    if session.rl.check_sync:
        from megatron_octo.rl.sync_check import install_on_trainer

        install_on_trainer()


def vllm_plugin() -> None:
    """Entry point `vllm.general_plugins`, which vLLM calls in each of its processes, whoever started them."""
    session = Session.from_environment()
    if session is None:
        return
    keep_stores_on_loopback()
    import torch

    if not torch.cuda.is_available():
        from megatron_octo.rl.cpu import install_rl_on_cpu, keep_vllm_weights

        install_rl_on_cpu()
        keep_vllm_weights()
    if session.rl.check_sync:
        from megatron_octo.rl.sync_check import install_on_engine

        install_on_engine()
