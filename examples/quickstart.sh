#!/usr/bin/env bash
# OctoThinker's whole course on this machine, without a GPU: a stable stage at a constant learning rate, then three
# branches that decay from its checkpoint, then GRPO from one of them. Run again, it skips what is complete. Arguments are
# passed to `octo` (-s key=value).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tools/install.sh
octo=.venv/bin/octo
start=$SECONDS

"$octo" data prepare tiny "$@"    # runs/tiny/data: text made by reasoning-gym, tokenized
"$octo" train tiny "$@"           # runs/tiny/stages: stable, then decay-long, decay-short, decay-hybrid
"$octo" export tiny "$@"          # runs/tiny/stages/<stage>/hf: models for transformers and vLLM
"$octo" heldout tiny "$@"         # each model answers held-out problems
if .venv/bin/python -c 'from importlib.util import find_spec as f; raise SystemExit(f("openrlhf") is None)'; then
    "$octo" rl tiny decay-hybrid "$@" # runs/tiny/rl/decay-hybrid: OpenRLHF on Ray, DeepSpeed and vLLM
else
    echo "OpenRLHF is not installed, so RL is skipped; docs/rl.md says how to install it with CUDA"
fi
"$octo" status tiny "$@"

echo "completed in $((SECONDS - start)) s after installation; see runs/tiny/curves.png, runs/tiny/summary.json"
echo "and runs/tiny/rl/decay-hybrid/curves.png"
