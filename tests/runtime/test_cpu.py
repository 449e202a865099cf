"""The CPU runtime, each in a process of its own: it changes torch for good."""

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU runtime is for machines with no CUDA device")


def run(code: str) -> str:
    preamble = (
        "from megatron_octo.runtime.quiet import silence_library_warnings as q; q()\n"
        "import torch\nfrom megatron_octo.runtime.device import setup_device, on_cpu\n"
    )
    done = subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_off_until_switched_on_and_says_so_once():
    out = run("assert not on_cpu()\nsetup_device()\nsetup_device()\nassert on_cpu()\nprint(torch.cuda.is_available())")
    assert out.count("No CUDA device: running on the CPU") == 1
    assert out.endswith("False\n")


ASKS_FOR_CUDA = [
    "torch.zeros(2, device='cuda')",
    "torch.ones(2, device='cuda:1')",
    "torch.empty(2, device=0)",
    "torch.tensor([1, 2], device=torch.device('cuda'))",
    "torch.tensor([1, 2], device=torch.cuda.current_device())",
    "torch.arange(2, device='cuda')",
    "torch.zeros(2).to('cuda')",
    "torch.zeros(2).to(device='cuda', dtype=torch.float32)",
    "torch.zeros(2).to(0)",
    "torch.zeros(2).cuda()",
    "torch.zeros_like(torch.zeros(2), device='cuda')",
    "torch.nn.Linear(2, 2).cuda().weight",
    "torch.empty(2, pin_memory=True)",
]


def test_what_asks_for_cuda_gets_the_cpu():
    shown = ", ".join(f"({make}).device" for make in ASKS_FOR_CUDA)
    assert run(f"setup_device(announce=False)\nprint(*[{shown}])").split() == ["cpu"] * len(ASKS_FOR_CUDA)


def test_conversions_that_are_not_about_devices_are_untouched():
    code = """
setup_device(announce=False)
x = torch.zeros(2)
assert x.to(torch.float64).dtype == torch.float64
assert x.to(torch.zeros(1, dtype=torch.int32)).dtype == torch.int32
assert x.type(torch.int64).dtype == torch.int64 and x.type('torch.cuda.HalfTensor').dtype == torch.float16
assert x.type() == 'torch.cuda.FloatTensor' and x.bfloat16().type() == 'torch.cuda.BFloat16Tensor'
"""
    run(code)


def test_the_generator_is_the_cpus_and_its_state_returns():
    code = """
setup_device(announce=False)
torch.manual_seed(5)
state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(3))
torch.cuda.manual_seed(5)
assert torch.equal(first, torch.rand(3))
"""
    run(code)


def test_streams_events_and_memory_answer():
    code = """
setup_device(announce=False)
with torch.cuda.stream(torch.cuda.Stream()):
    event = torch.cuda.Event()
    event.record(); event.synchronize()
    torch.cuda.current_stream().wait_event(event)
assert event.query() and torch.cuda.max_memory_allocated() > 1e6
torch.cuda.synchronize(); torch.cuda.empty_cache(); torch.cuda.set_device(0)
assert not torch.cuda.is_current_stream_capturing()
"""
    run(code)


def test_devices_named_in_a_context_are_still_heeded():
    """torch keeps a table of its factories that was once made of the substitutes: "meta" gave real tensors, and
    transformers loaded models with uninitialised RoPE frequencies."""
    run(
        "setup_device(announce=False)\n"
        "with torch.device('meta'):\n    assert torch.arange(3).device.type == torch.zeros(2).device.type == 'meta'"
    )


def test_torch_compile_can_still_be_used():
    """torch._dynamo refuses to start where two of torch's names are one object."""
    run(
        "setup_device(announce=False)\nimport torch._dynamo\n"
        "f = torch.compile(lambda x: x + 1, backend='eager')\nassert f(torch.zeros(1)) == 1"
    )


def test_cuda_asked_for_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("OCTO_DEVICE", "cuda")
    out = run(
        "from megatron_octo.errors import RuntimeSetupError\n"
        "try:\n    setup_device()\nexcept RuntimeSetupError as error:\n    print(error)"
    )
    assert "OCTO_DEVICE=cuda" in out and "unset it" in out
