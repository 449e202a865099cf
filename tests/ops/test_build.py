"""The compiled library: built from these sources, with CUDA if there is nvcc, and loadable in a torch without CUDA."""

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


def dispatch_keys(library):
    command = [sys.executable, "-c", SHOW.format(library=str(library))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_library_is_built_from_these_sources():
    assert LIBRARY.is_file(), "csrc is not built: `python setup.py build_ext --inplace`"
    newest = max(source.stat().st_mtime for source in (ROOT / "csrc").iterdir())
    assert LIBRARY.stat().st_mtime >= newest, "csrc is newer than the library: rebuild it"


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile the CUDA kernels with")


@needs_nvcc
def test_cuda_kernels_are_compiled_if_there_is_nvcc():
    assert dispatch_keys(LIBRARY) == ["CPU", "CUDA"]


@needs_nvcc
def test_cuda_kernels_move_16_bytes_at_a_time(tmp_path):
    """Counts memory instructions in the PTX.

    Aligned rows have four vector loads in flight, unaligned rows two times two. Gradients also have the stores of both,
    and two of `clear`. Single values are read only at a row's end and at its target. (Once a memory copy to another
    type was compiled into loads of single bytes, and once unaligned rows were read value by value.)
    """
    ptx = tmp_path / "cuda.ptx"
    include = Path(find_spec("torch").origin).with_name("include")
    command = ["nvcc", "-ptx", "-arch=compute_90", "-O3", "-DUSE_CUDA", "-std=c++20"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{include}", "-Icsrc", "csrc/cuda.cu", "-o", str(ptx)]
    subprocess.run(command, cwd=ROOT, check=True)
    entries = re.split(r"\.entry ", ptx.read_text())[1:]
    # statistics of 3 dtypes, with and without entropy, and gradients of 5 pairs of dtypes; all for short and long rows
    assert len(entries) == 22
    for text in entries:
        accesses = Counter(re.findall(r"\b((?:ld|st)\.global\S*)", text))
        assert accesses["ld.global.v4.u32"] == 4 + 2 * 2, accesses
        single = {name: n for name, n in accesses.items() if name.startswith("ld.global.") and ".v" not in name}
        single_logits = sum(n for name, n in single.items() if ".nc." not in name)  # .nc: targets, temperatures, rows
        if "stats_kernel" in text.split("(")[0]:
            assert single_logits <= 3, accesses
        else:
            assert single_logits == 1, accesses
            assert accesses["st.global.v4.u32"] + accesses["st.global.v2.u32"] >= 4 + 2 + 2, accesses


@pytest.mark.slow
def test_a_first_build_without_nvcc_is_for_the_cpu(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "megatron_octo/ops").mkdir(parents=True)
    shutil.copy(ROOT / "megatron_octo/__init__.py", tmp_path / "megatron_octo")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"OCTO_CUDA": "0"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert dispatch_keys(tmp_path / "megatron_octo/ops/_C.so") == ["CPU"]


def test_a_library_of_older_sources_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    with pytest.raises(RuntimeSetupError, match=r"has operators of version 2, and version 3 is needed; rebuild it"):
        kernels.has_library.__wrapped__()


def test_without_the_library_plain_pytorch_is_used_with_one_warning(tmp_path):
    code = (
        "import pathlib, torch\nfrom megatron_octo.ops import kernels, token_log_probs\n"
        f"kernels.LIBRARY = pathlib.Path({str(tmp_path / 'none.so')!r})\n"
        "for _ in range(2): print(token_log_probs(torch.zeros(1, 4), torch.tensor([1])).log_probs.item())"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["-1.3862943649291992"] * 2
    assert completed.stderr.count("plain PyTorch is used instead") == 1
    assert "build_ext --inplace" in completed.stderr
