"""The CUDA kernels where no GPU is: csrc's CUDA code, compiled for tests/ops/emulation's stand-in for one."""

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
    """torch.ops.octo_emulated, built in `folder`; skips where there is no nvcc, whose headers it needs."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not here, so there are no CUDA headers to compile the kernels with")
    toolkits = (Path(nvcc).resolve().parents[1], Path("/usr/local/cuda"))  # nvcc may be a script that calls another
    headers = next(t / "include" for t in toolkits if (t / "include/cuda_bf16.h").is_file())
    torch_folder = Path(find_spec("torch").origin).parent
    library = folder / "emulated.so"
    command = [
        "g++", "-shared", "-fPIC", "-std=c++20", "-O2", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall",
        "-ffp-contract=fast", *(["-march=x86-64-v3"] if platform.machine() == "x86_64" else []),  # fused, as nvcc does
        "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error",  # an unaligned access ends the process
        "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000",
        *("-isystem", torch_folder / "include", "-isystem", headers, "-I", ROOT / "csrc"),
        *(SOURCES / "ops.cpp", "-o", library, f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-Wl,-Bsymbolic"),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    torch.ops.load_library(str(library))
    return torch.ops.octo_emulated
