"""The compiled library: there, of these sources, with CUDA wherever nvcc is, and loading where torch has no CUDA."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_octo.errors import RuntimeSetupError
from megatron_octo.ops import kernels
from megatron_octo.ops.kernels import LIBRARY
from tests.support import ROOT

SHOW = """
import torch
torch.ops.load_library({library!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(key for key in ("CPU", "CUDA") if has("octo::token_stats", key) and has("octo::token_grad", key)))
"""


def keys_of(library):
    command = [sys.executable, "-c", SHOW.format(library=str(library))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_it_is_built_from_these_sources():
    assert LIBRARY.is_file(), "csrc is not built: `python setup.py build_ext --inplace`"
    newest = max(source.stat().st_mtime for source in (ROOT / "csrc").iterdir())
    assert LIBRARY.stat().st_mtime >= newest, "csrc is newer than the library: build it again"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here, so there are no CUDA kernels to compile")
def test_cuda_kernels_are_compiled_where_nvcc_is():
    assert keys_of(LIBRARY) == ["CPU", "CUDA"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not here, so there are no CUDA kernels to compile")
def test_cuda_kernels_move_16_bytes_at_a_time(tmp_path):
    """Counted: aligned rows have four loads in flight and unaligned ones two of two; stores of both, and `clear`'s two.

    Beside them only single values, at a row's end and of its target. (A copy of memory to another type was once
    compiled into loads of single bytes; unaligned rows were once read value by value.)
    """
    ptx = tmp_path / "cuda.ptx"
    include = Path(find_spec("torch").origin).with_name("include")
    command = ["nvcc", "-ptx", "-arch=compute_90", "-O3", "-DUSE_CUDA", "-std=c++20"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{include}", "-Icsrc", "csrc/cuda.cu", "-o", str(ptx)]
    subprocess.run(command, cwd=ROOT, check=True)
    kernels = re.split(r"\.entry ", ptx.read_text())[1:]
    assert (
        len(kernels) == 22
    )  # statistics of 3 dtypes, with entropy or not, gradients of 5 pairs; for short rows and long
    for text in kernels:
        of_memory = Counter(re.findall(r"\b((?:ld|st)\.global\S*)", text))
        assert of_memory["ld.global.v4.u32"] == 4 + 2 * 2, of_memory
        single = {name: n for name, n in of_memory.items() if name.startswith("ld.global.") and ".v" not in name}
        of_logits = sum(n for name, n in single.items() if ".nc." not in name)  # .nc: targets, temperatures, rows
        if "stats_kernel" in text.split("(")[0]:
            assert of_logits <= 3, of_memory
        else:
            assert of_logits == 1, of_memory
            assert of_memory["st.global.v4.u32"] + of_memory["st.global.v2.u32"] >= 4 + 2 + 2, of_memory


@pytest.mark.slow
def test_it_is_built_without_nvcc_and_where_it_was_not(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "megatron_octo/ops").mkdir(parents=True)
    shutil.copy(ROOT / "megatron_octo/__init__.py", tmp_path / "megatron_octo")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"OCTO_CUDA": "0"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert keys_of(tmp_path / "megatron_octo/ops/_C.so") == ["CPU"]


def test_a_library_of_older_sources_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    with pytest.raises(RuntimeSetupError, match=r"its operators are of version 2, and 3 is needed; build it again"):
        kernels.has_library.__wrapped__()


def test_with_no_compiler_plain_pytorch_serves_and_says_so_once(tmp_path):
    code = (
        "import pathlib, torch\nfrom megatron_octo.ops import kernels, token_log_probs\n"
        f"kernels.LIBRARY = pathlib.Path({str(tmp_path / 'none.so')!r})\n"
        "for _ in range(2): print(token_log_probs(torch.zeros(1, 4), torch.tensor([1])).log_probs.item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-1.3862943649291992"] * 2
    assert done.stderr.count("plain PyTorch serves") == 1 and "build_ext --inplace" in done.stderr
