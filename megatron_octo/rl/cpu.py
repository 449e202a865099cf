"""OpenRLHF and vLLM on a machine without CUDA: stand-ins for what they import and call."""

import importlib.machinery
import sys
import types
from typing import Any, NoReturn

import torch

from megatron_octo.runtime.cpu import install_cpu_runtime

_ABSENT = {
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}
"""Modules of flash-attn that OpenRLHF always imports, with the functions that it calls for packed samples alone."""
_EXPIRATION_SECONDS = 60
"""How long a sent tensor stays in the group's store. The trainer waits for the receivers after each tensor."""


def install_rl_on_cpu() -> None:
    """Replace CUDA, flash-attn and NCCL's broadcast in this process. Safe to call again."""
    install_cpu_runtime()
    if "flash_attn" not in sys.modules:
        for name, functions in _ABSENT.items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            for function in functions:
                setattr(module, function, _absent(f"{name}.{function}"))
            sys.modules[name] = module
    # an integer, because OpenRLHF builds device names from it
    torch.cuda.current_device = lambda: 0
    # OpenRLHF compiles its entropy: compilation reads CUDA device properties, and takes longer here than it saves
    torch._dynamo.config.disable = True
    import openrlhf.utils.distributed_util as distributed_util

    distributed_util.stateless_init_process_group = _tcp_group
    _use_fp32()


def _use_fp32() -> None:
    """Train and sample in fp32, which OpenRLHF does not offer.

    A core without bf16 arithmetic takes ten times as long in bf16, and a model as small as `tiny` forgets in bf16 what
    it has learned.
    """
    import openrlhf.models.model as model_module
    import openrlhf.utils.utils as utils
    import vllm
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    if hasattr(DeepspeedStrategy, "octo_fp32"):
        return
    DeepspeedStrategy.octo_fp32 = True
    original_init, original_convert = DeepspeedStrategy.__init__, utils.convert_to_torch_dtype
    engine_args = vllm.AsyncEngineArgs

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        # the engine's configuration reads it, and then enables neither 16-bit format
        self.param_dtype = self.args.ds.param_dtype = "fp32"

    def convert(name: str) -> torch.dtype:
        return torch.float32 if name == "fp32" else original_convert(name)

    DeepspeedStrategy.__init__ = init
    utils.convert_to_torch_dtype = model_module.convert_to_torch_dtype = convert
    vllm.AsyncEngineArgs = lambda *args, **kwargs: engine_args(*args, **kwargs | {"dtype": "float32"})


def keep_vllm_weights() -> None:
    """Make vLLM's linear layers multiply by their own weights.

    On the CPU, vLLM repacks the weights when it starts and drops the originals, so that a sync would write to nowhere.
    Where embeddings are tied it keeps both copies, and a sync would change one.
    """
    from vllm.model_executor.layers import utils

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        del remove_weight
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]

    utils.dispatch_cpu_unquantized_gemm = dispatch


def _absent(name: str) -> Any:
    def absent(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"{name}: flash-attn needs CUDA; leave ds.packing_samples and ds.ring_attn_size alone")

    return absent


class _Broadcast:
    """Sends weights from the trainer to vLLM's workers through vLLM's own TCP group, in place of NCCL."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        del stream
        sent = self.group.broadcast_obj(tensor.detach().cpu() if self.group.rank == src else None, src)
        if self.group.rank != src:
            tensor.copy_(sent)


def _tcp_group(master_address: str, master_port: int, rank: int, world_size: int, device: Any) -> _Broadcast:
    from vllm.distributed.utils import StatelessProcessGroup

    del device
    group = StatelessProcessGroup.create(
        host=master_address,
        port=master_port,
        rank=rank,
        world_size=world_size,
        data_expiration_seconds=_EXPIRATION_SECONDS,
    )
    return _Broadcast(group)
