"""Builds csrc/ into megatron_octo/ops/_C.so. Everything declarative is in pyproject.toml.

    python setup.py build_ext --inplace

For the CPU always; for CUDA where nvcc is, whether or not a GPU is. Without a compiler, or without torch (as in pip's
isolated builds), nothing is built, and plain PyTorch serves. The library uses torch's stable ABI: one binary loads on
torch 2.11 and later.

    OCTO_CUDA=0            leave CUDA out
    OCTO_CUDA_ARCHS=80,90  other GPU architectures than all majors from 80 on that nvcc has
"""

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_TORCH = "0x020b000000000000"  # 2.11
CPU_SOURCES = ("cpu", "product")
SOURCES = [*(f"csrc/{name}.cpp" for name in CPU_SOURCES), "csrc/cuda.cu"]
HEADERS = ["csrc/common.h", "csrc/launch.cuh", "csrc/kernels.cuh", "csrc/rows.cuh"]
OLDEST_MAJOR = 8


class BuildOps(build_ext):
    """g++ and nvcc by hand: torch's own builder refuses CUDA sources beside a torch with no CUDA."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        torch = find_spec("torch")
        if compiler is None or torch is None:
            missing = "a C++ compiler" if compiler is None else "torch (install it first, and use --no-build-isolation)"
            print(f"megatron_octo: operators not built, {missing} is missing; plain PyTorch serves", file=sys.stderr)
            return
        self.torch = Path(torch.origin).parent
        work, target = Path(self.build_temp) / "octo_ops", Path(self.get_ext_fullpath(ext.name))
        work.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        objects, linker = [self._compile_cpu(compiler, work, name) for name in CPU_SOURCES], [compiler]
        nvcc = self._nvcc()
        if nvcc is not None:
            try:
                objects.append(self._compile_cuda(nvcc, work))
                linker = [nvcc, "-cudart", "static"]  # it knows where its libraries are
            except subprocess.CalledProcessError as error:
                print(f"megatron_octo: operators built for the CPU alone, {nvcc} failed: {error}", file=sys.stderr)
        beside = target.with_suffix(".partial")
        # -ltorch brings libtorch_cuda along where there is one: without it CUDA's weak symbols stay null
        libraries = [f"-L{self.torch / 'lib'}", *link("--no-as-needed"), "-ltorch", "-ltorch_cpu", *link("--as-needed")]
        run([*linker, "-shared", "-o", beside, *objects, *libraries, "-lm", *link("--exclude-libs", "ALL")])
        beside.replace(target)  # a process that has the old one loaded keeps it

    def _abi(self):
        return ["-std=c++20", f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}", f"-I{self.torch / 'include'}", "-Icsrc"]

    def _compile_cpu(self, compiler, work, name):
        march = ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []
        flags = [
            "-O3",
            "-fPIC",
            "-fvisibility=hidden",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-fopenmp-simd",
            "-Wall",
            *march,
        ]
        run([compiler, "-c", *flags, *self._abi(), f"csrc/{name}.cpp", "-o", work / f"{name}.o"])
        return work / f"{name}.o"

    def _compile_cuda(self, nvcc, work):
        listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        asked = os.environ.get("OCTO_CUDA_ARCHS")
        archs = asked.split(",") if asked else majors_of(listed)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # and for what comes after
        flags = ["-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2"]
        run([nvcc, "-c", *flags, *codes, *self._abi(), "csrc/cuda.cu", "-o", work / "cuda.o"])
        return work / "cuda.o"

    def _nvcc(self):
        if os.environ.get("OCTO_CUDA") == "0":
            return None
        found = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
        return Path(found).resolve() if found else None


def majors_of(listed):
    """The lowest architecture of each major version from 8 on: code for one runs on all of its major."""
    lowest = {}
    for arch in sorted(int(line.removeprefix("sm_")) for line in listed.split() if line.removeprefix("sm_").isdigit()):
        lowest.setdefault(arch // 10, arch)
    return [str(arch) for major, arch in lowest.items() if major >= OLDEST_MAJOR]


def link(*options):
    return [part for option in options for part in ("-Xlinker", option)]


def run(command):
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


setup(
    ext_modules=[Extension("megatron_octo.ops._C", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": BuildOps},
)
