"""The proof that vLLM samples from the trainer's weights: after each sync both sides are hashed and compared.

vLLM keeps some tensors joined (queries, keys and values; gate and up), and its vocabulary padded; the trainer's are put
together the same way before they are hashed. The engines leave their digests in the run's folder, where the trainer
reads them: all hosts share it.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.rl.session import Session
from megatron_octo.rl.watch import append
from megatron_octo.runtime.files import write_json_atomically

_JOINED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
}  # fmt: skip
_SEEN_SECONDS = 20.0
"""How long a shared file system may take to show another host's file."""
_VOCABULARY = ("embed_tokens.weight", "lm_head.weight")
Digests = dict[str, str]
"""SHA-256 of each tensor, by vLLM's names."""


def trainer_digests(parameters: Iterable[tuple[str, torch.Tensor]]) -> Digests:
    """Of a causal model of transformers; its parts come in vLLM's order (queries, keys, values; gate, up)."""
    hashes: dict[str, Any] = {}
    for name, tensor in parameters:
        words = [_JOINED.get(word, word) for word in name.split(".")]
        hashes.setdefault(".".join(words), hashlib.sha256()).update(_bytes_of(tensor))
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def engine_digests(parameters: Iterable[tuple[str, torch.Tensor]], vocabulary: int) -> Digests:
    """Of vLLM's model, without the padding of its vocabulary."""
    return {
        name: hashlib.sha256(_bytes_of(tensor[:vocabulary] if name.endswith(_VOCABULARY) else tensor)).hexdigest()
        for name, tensor in parameters
    }


def differences(trainer: Mapping[str, str], engine: Mapping[str, str]) -> list[str]:
    """Names of tensors that differ, or that one side lacks."""
    return sorted(name for name in trainer.keys() | engine.keys() if trainer.get(name) != engine.get(name))


def install_on_engine() -> None:
    """In a process of vLLM: leave digests once the last tensor of a sync is in. Safe to call again."""
    from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

    if hasattr(WorkerWrap, "octo_checks"):
        return
    WorkerWrap.octo_checks = True
    for name in ("update_weight", "update_weight_cuda_ipc"):
        setattr(WorkerWrap, name, _then_write(getattr(WorkerWrap, name)))


def _then_write(original: Any) -> Any:
    def update(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        session = Session.from_environment()
        is_last = bool(args[-1])  # what OpenRLHF calls empty_cache, and says with the last tensor
        if is_last and session is not None:
            model = self.model_runner.model
            digests = engine_digests(model.named_parameters(), model.config.vocab_size)
            write_json_atomically(_folder(session) / f"engine-{os.uname().nodename}-{os.getpid()}.json", digests)
        return result

    return update


def install_on_trainer() -> None:
    """In the actor's processes: compare after each sync. Safe to call again."""
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    if hasattr(ActorPPOTrainer, "octo_checks"):
        return
    ActorPPOTrainer.octo_checks = True
    original = ActorPPOTrainer.broadcast_to_vllm

    def broadcast_to_vllm(self: Any) -> None:
        session = Session.from_environment()
        assert session is not None
        is_first = torch.distributed.get_rank() == 0
        if is_first:
            for left in _folder(session).glob("engine-*.json"):
                left.unlink()
        original(self)
        if is_first:
            _compare(session, self.actor.model.module, len(self.vllm_engines))

    ActorPPOTrainer.broadcast_to_vllm = broadcast_to_vllm


def _compare(session: Session, model: torch.nn.Module, engines: int) -> None:
    trainer = trainer_digests(model.named_parameters())
    deadline = time.monotonic() + _SEEN_SECONDS
    while len(files := sorted(_folder(session).glob("engine-*.json"))) < engines and time.monotonic() < deadline:
        time.sleep(0.1)
    if len(files) != engines:
        raise RuntimeSetupError(
            f"{_folder(session)}: {len(files)} of {engines} vLLM engines said what weights they have; the folder "
            "must be one that all hosts share"
        )
    for file in files:
        if wrong := differences(trainer, json.loads(file.read_text())):
            raise RuntimeSetupError(
                f"after a sync {len(wrong)} of {len(trainer)} tensors in vLLM ({file.stem}) are not the trainer's: "
                f"{', '.join(wrong[:4])}; responses would be sampled from other weights than are trained"
            )
    append(session.folder / "syncs.jsonl", {"tensors": len(trainer), "engines": engines})


def _folder(session: Session) -> Path:
    return session.folder / "sync"


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
