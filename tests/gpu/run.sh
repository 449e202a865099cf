#!/usr/bin/env bash
# Build, test and benchmark the kernels on a GPU, in one command and at most ten minutes. Needs torch, g++, nvcc and the
# modules listed below, and installs nothing. Results go to the given folder (default: gpu-results). If a test fails, the
# benchmarks still run, and the script fails at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-gpu-results}
limit=600
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-python3}
missing=$("$python" -c '
from importlib.util import find_spec
print(*(m for m in ("torch", "setuptools", "pytest", "pydantic", "click", "rich", "matplotlib", "numpy") if find_spec(m) is None))')
[[ -z $missing ]] || { echo "run.sh: $python lacks: $missing; install them" >&2; exit 1; }
for compiler in g++ nvcc; do
  PATH=$PATH:/usr/local/cuda/bin command -v $compiler >/dev/null ||
    { echo "run.sh: no $compiler to build the kernels with; install it" >&2; exit 1; }
done
"$python" -c 'import setuptools as s; raise SystemExit(int(s.__version__.split(".")[0]) < 77)' ||
  { echo "run.sh: the build needs setuptools 77 or later: $python -m pip install -U setuptools" >&2; exit 1; }
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
  { echo "run.sh: torch of $python sees no GPU" >&2; exit 1; }
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/machine.txt"
OCTO_CUDA_ARCHS=${OCTO_CUDA_ARCHS:-90} "$python" setup.py -q build_ext --inplace
echo "built after $SECONDS s"
passed=true
"$python" -m pytest -q -p no:cacheprovider tests/gpu 2>&1 | tee "$out/tests.txt" || passed=false
echo "tested after $SECONDS s"
bench() { "$python" tools/bench_logprob.py --rounds 20 --json "$out/$1.json" --plot "$out/$1.png" "${@:2}" | tee "$out/$1.txt"; }
bench logits-8192x128256 --form logits --tokens 8192 --vocabulary 128256
bench logits-8192x151936 --form logits --tokens 8192 --vocabulary 151936
bench logits-8192x128257 --form logits --tokens 8192 --vocabulary 128257 # unaligned rows
bench linear-8192x131072 --form linear --tokens 8192 --hidden 4096 --vocabulary 131072
echo "finished after $SECONDS s" | tee "$out/seconds.txt"
$passed || { echo "run.sh: tests failed, see $out/tests.txt" >&2; exit 1; }
((SECONDS <= limit)) || { echo "run.sh: took $SECONDS s; the limit is $limit s" >&2; exit 1; }
