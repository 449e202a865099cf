"""OpenRLHF and vLLM on a machine with no CUDA: what they import and call there, answered."""

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
"""What OpenRLHF imports of flash-attn wherever it runs, and calls only for packed samples, which need it."""


_KEPT_SECONDS = 60
"""How long a sent tensor stays in the group's store. The trainer waits for its receivers after every one."""


def install_rl_on_cpu() -> None:
    """Answer for CUDA, flash-attn and NCCL's broadcast in this process. Safe to call again."""
    install_cpu_runtime()
    if "flash_attn" not in sys.modules:
        for name, functions in _ABSENT.items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            module.__path__ = []
            for function in functions:
                setattr(module, function, _absent(f"{name}.{function}"))
            sys.modules[name] = module
    # a number, since OpenRLHF makes names of devices of it
    torch.cuda.current_device = lambda: 0
    # its entropy is compiled, which asks CUDA for the device's properties, and would take longer than it saves here
    torch._dynamo.config.disable = True
    import openrlhf.utils.distributed_util as distributed_util

    distributed_util.stateless_init_process_group = _tcp_group
    _use_fp32()


def _use_fp32() -> None:
    """Train and sample in fp32, which OpenRLHF does not offer.

    A core without bf16 arithmetic takes ten times as long for it, and models of `tiny`'s size lose in bf16 what they
    have learned.
    """
    import openrlhf.models.model as model_module
    import openrlhf.utils.utils as utils
    import vllm
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    if hasattr(DeepspeedStrategy, "octo_fp32"):
        return
    DeepspeedStrategy.octo_fp32 = True
    begin, to_dtype, engine_args = DeepspeedStrategy.__init__, utils.convert_to_torch_dtype, vllm.AsyncEngineArgs

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        # read by the engine's configuration, which then switches on neither 16-bit format
        self.param_dtype = self.args.ds.param_dtype = "fp32"

    def convert(name: str) -> torch.dtype:
        return torch.float32 if name == "fp32" else to_dtype(name)

    DeepspeedStrategy.__init__ = init
    utils.convert_to_torch_dtype = model_module.convert_to_torch_dtype = convert
    vllm.AsyncEngineArgs = lambda *args, **kwargs: engine_args(*args, **kwargs | {"dtype": "float32"})


def keep_vllm_weights() -> None:
    """Let vLLM's linear layers multiply by the weights they hold.

    On the CPU it repacks them as it starts and drops the originals, so that new ones have nowhere to go; of tied
    embeddings it keeps both, and new ones would change one.
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
    """Weights from the trainer to vLLM's workers through vLLM's own TCP group, in the place of NCCL."""

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
        data_expiration_seconds=_KEPT_SECONDS,
    )
    return _Broadcast(group)
