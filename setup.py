"""Builds csrc/ into megatron_octo/ops/_C.so. Everything declarative is in pyproject.toml.

    python setup.py build_ext --inplace

The CPU kernels are always built, the CUDA kernels if nvcc is found, with or without a GPU. Without a C++ compiler or
torch (as in pip's isolated builds) nothing is built, and plain PyTorch is used instead. The library uses torch's stable
ABI, so one binary loads in torch 2.11 and later.

    OCTO_CUDA=0            do not build the CUDA kernels
    OCTO_CUDA_ARCHS=80,90  GPU architectures to build for (default: the lowest of each major version from 80 on)
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
    """Calls g++ and nvcc directly: torch's own builder refuses CUDA sources if torch has no CUDA."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext):
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        torch = find_spec("torch")
        if compiler is None or torch is None:
            missing = "a C++ compiler" if compiler is None else "torch (install it first, and use --no-build-isolation)"
            print(f"megatron_octo: operators not built, {missing} is missing; plain PyTorch is used", file=sys.stderr)
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
                linker = [nvcc, "-cudart", "static"]  # nvcc knows where its libraries are
            except subprocess.CalledProcessError as error:
                print(f"megatron_octo: operators built for the CPU only, {nvcc} failed: {error}", file=sys.stderr)
        partial = target.with_suffix(".partial")
        # -ltorch pulls in libtorch_cuda if there is one; without it the weak CUDA symbols would stay null
        libraries = [f"-L{self.torch / 'lib'}", *link("--no-as-needed"), "-ltorch", "-ltorch_cpu", *link("--as-needed")]
        run([*linker, "-shared", "-o", partial, *objects, *libraries, "-lm", *link("--exclude-libs", "ALL")])
        partial.replace(target)  # running processes keep the old library that they have loaded

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
        archs = asked.split(",") if asked else lowest_of_each_major(listed)
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")  # PTX, for later architectures
        flags = ["-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "2"]
        run([nvcc, "-c", *flags, *codes, *self._abi(), "csrc/cuda.cu", "-o", work / "cuda.o"])
        return work / "cuda.o"

    def _nvcc(self):
        if os.environ.get("OCTO_CUDA") == "0":
            return None
        found = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
        return Path(found).resolve() if found else None


def lowest_of_each_major(listed):
    """The lowest architecture of each major version from 8 on. Its code runs on every later one of that version."""
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
