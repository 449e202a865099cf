#!/usr/bin/env bash
# Everything a change must pass: install, ruff, mypy, the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Ranks of a test are processes of their own; with a thread pool as wide as the machine each, they trip over
# one another.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
export MPLBACKEND=${MPLBACKEND:-Agg}

bash tools/install.sh
bin=.venv/bin

echo "== ruff check"
"$bin/ruff" check .
echo "== ruff format"
"$bin/ruff" format --check .
echo "== mypy"
"$bin/mypy"
echo "== pytest"
# Two files at a time: most of a test's time is Python starting and ranks waiting for each other
exec "$bin/python" -m pytest -n "${OCTO_TEST_WORKERS:-2}" --dist loadfile "$@"
