"""The CUDA kernels without a GPU: csrc's CUDA code, compiled against the emulated GPU of tests/ops/emulation."""

import platform
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.support import ROOT

SOURCES = Path(__file__).with_name("emulation")


def load(folder: Path) -> ModuleType:
    """Build torch.ops.octo_emulated in `folder`. Skips the test without nvcc, whose headers are needed."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc, so no CUDA headers to compile the kernels with")
    toolkits = (
        Path(nvcc).resolve().parents[1],
        Path("/usr/local/cuda"),
    )  # nvcc may be a wrapper script
    headers = next(t / "include" for t in toolkits if (t / "include/cuda_bf16.h").is_file())
    torch_folder = Path(find_spec("torch").origin).parent
    library = folder / "emulated.so"
    command = [
        "g++", "-shared", "-fPIC", "-std=c++20", "-O2", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall",
        "-ffp-contract=fast", *(["-march=x86-64-v3"] if platform.machine() == "x86_64" else []),  # fuse, as nvcc does
        "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error",  # an unaligned access kills the process
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *("-isystem", torch_folder / "include", "-isystem", headers, "-I", ROOT / "csrc"),
        *(SOURCES / "ops.cpp", "-o", library, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-Wl,-Bsymbolic"),
    ]  # fmt: skip
    compiled = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    torch.ops.load_library(str(library))
    return torch.ops.octo_emulated
