#!/usr/bin/env bash
# OctoThinker's shape on this machine, no GPU needed: a stable stage at a constant learning rate, then three branches
# that decay from the same checkpoint, then GRPO from one of them. Run it again and it skips what is done. Arguments go to
# `octo` (-s key=value).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh
octo=.venv/bin/octo
start=$SECONDS

"$octo" data prepare tiny "$@"    # text made by reasoning-gym, tokenized to runs/tiny/data
"$octo" train tiny "$@"           # runs/tiny/stages: stable, then decay-long, decay-short, decay-hybrid
"$octo" export tiny "$@"          # runs/tiny/stages/<stage>/hf: transformers and vLLM load them
"$octo" heldout tiny "$@"         # each model answers problems that no text it saw holds
if .venv/bin/python -c 'from importlib.util import find_spec as f; raise SystemExit(f("openrlhf") is None)'; then
    "$octo" rl tiny decay-hybrid "$@" # runs/tiny/rl/decay-hybrid: OpenRLHF on Ray, DeepSpeed and vLLM
else
    echo "OpenRLHF is not installed, so there is no RL; docs/rl.md says how to install it beside CUDA"
fi
"$octo" status tiny "$@"

echo "done in $((SECONDS - start)) s after installation; look at runs/tiny/curves.png, runs/tiny/summary.json,"
echo "and runs/tiny/rl/decay-hybrid/curves.png"
