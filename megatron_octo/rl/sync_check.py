"""A check that vLLM samples from the trainer's weights: after each sync, hashes of both are compared.

vLLM joins some tensors (queries, keys and values; gate and up) and pads the vocabulary. The trainer's tensors are
joined in the same way before they are hashed. Each engine writes its digests to the run's folder, which all hosts
share, and the trainer reads them there.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.rl.session import Session
from megatron_octo.rl.watch import append_record
from megatron_octo.runtime.files import write_json_atomically
from megatron_octo.runtime.rl_folder import RlFolder

_JOINED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
}  # fmt: skip
_SHARED_FILE_SECONDS = 20.0
"""How long a shared file system may take to show another host's file."""
_PADDED = ("embed_tokens.weight", "lm_head.weight")
_ENGINE_FILES = "engine-*.json"
Digests = dict[str, str]
"""SHA-256 of each tensor, by vLLM's names."""


def trainer_digests(parameters: Iterable[tuple[str, torch.Tensor]]) -> Digests:
    """Digests of a causal model of transformers, by vLLM's names.

    Its parameters must come in vLLM's order: queries, keys, values; gate, up.
    """
    hashes: dict[str, Any] = {}
    for name, tensor in parameters:
        words = [_JOINED.get(word, word) for word in name.split(".")]
        hashes.setdefault(".".join(words), hashlib.sha256()).update(_bytes_of(tensor))
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def engine_digests(parameters: Iterable[tuple[str, torch.Tensor]], vocabulary: int) -> Digests:
    """Digests of vLLM's model.

    Args:
        vocabulary: rows of the embedding that are not padding.
    """
    digests = {}
    for name, tensor in parameters:
        unpadded = tensor[:vocabulary] if name.endswith(_PADDED) else tensor
        digests[name] = hashlib.sha256(_bytes_of(unpadded)).hexdigest()
    return digests


def differences(trainer: Mapping[str, str], engine: Mapping[str, str]) -> list[str]:
    """Names of the tensors that differ, or that one side does not have."""
    return sorted(name for name in trainer.keys() | engine.keys() if trainer.get(name) != engine.get(name))


def install_on_engine() -> None:
    """In a process of vLLM: write digests once the last tensor of a sync has arrived. Safe to call again."""
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

    if hasattr(WorkerWrap, "octo_checks"):
        return
    WorkerWrap.octo_checks = True
    for name in ("update_weight", "update_weight_cuda_ipc"):
        setattr(WorkerWrap, name, _writing_digests(getattr(WorkerWrap, name)))


def _writing_digests(original: Any) -> Any:
    def update(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        is_last = bool(args[-1])  # OpenRLHF's `empty_cache`, which is true for the last tensor alone
        if is_last:
            model = self.model_runner.model
            digests = engine_digests(model.named_parameters(), model.config.vocab_size)
            name = _ENGINE_FILES.replace("*", f"{os.uname().nodename}-{os.getpid()}")
            write_json_atomically(Session.required().folder.sync_digests / name, digests)
        return result

    return update


def install_on_trainer() -> None:
    """In the actor's processes: compare digests after each sync. Safe to call again."""
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    if hasattr(ActorPPOTrainer, "octo_checks"):
        return
    ActorPPOTrainer.octo_checks = True
    original = ActorPPOTrainer.broadcast_to_vllm

    def broadcast_to_vllm(self: Any) -> None:
        folder = Session.required().folder
        is_first = torch.distributed.get_rank() == 0
        if is_first:
            for stale in folder.sync_digests.glob(_ENGINE_FILES):
                stale.unlink()
        original(self)
        if is_first:
            _compare(folder, self.actor.model.module, len(self.vllm_engines))

    ActorPPOTrainer.broadcast_to_vllm = broadcast_to_vllm


def _compare(folder: RlFolder, model: torch.nn.Module, engines: int) -> None:
    trainer = trainer_digests(model.named_parameters())
    deadline = time.monotonic() + _SHARED_FILE_SECONDS
    while len(files := sorted(folder.sync_digests.glob(_ENGINE_FILES))) < engines and time.monotonic() < deadline:
        time.sleep(0.1)
    if len(files) != engines:
        raise RuntimeSetupError(
            f"{folder.sync_digests}: {len(files)} of {engines} vLLM engines said what weights they have; the folder "
            "must be one that all hosts share"
        )
    for file in files:
        if wrong := differences(trainer, json.loads(file.read_text())):
            raise RuntimeSetupError(
                f"after a sync {len(wrong)} of {len(trainer)} tensors in vLLM ({file.stem}) are not the trainer's: "
                f"{', '.join(wrong[:4])}; responses would be sampled from other weights than are trained"
            )
    append_record(folder.syncs, {"tensors": len(trainer), "engines": engines})


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
