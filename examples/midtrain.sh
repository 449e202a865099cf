#!/usr/bin/env bash
# Mid-training on a SLURM cluster: one task for each GPU, one job for each stage. Submit the stable stage, and its
# branches to start after it:
#
#   job=$(sbatch --parsable --nodes=8 examples/midtrain.sh octothinker-3b stable)
#   for branch in decay-long decay-short decay-hybrid; do
#     sbatch --nodes=4 --dependency=afterok:$job --kill-on-invalid-dep=yes examples/midtrain.sh octothinker-3b $branch
#   done
#
# Further arguments are passed to `octo train` (-s key=value). Ten minutes before the time limit SLURM sends SIGUSR1. The
# job then finishes its step, writes a checkpoint and is requeued, and it resumes from that checkpoint.
#SBATCH --job-name=octo-midtrain
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: sbatch [--nodes=N ...] examples/midtrain.sh RECIPE STAGE [-s key=value ...]" >&2; exit 2; }
recipe=$1 stage=$2
shift 2
cd "${OCTO_HOME:-$SLURM_SUBMIT_DIR}"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT CUDA_DEVICE_MAX_CONNECTIONS=1
export OCTO_RUNS=${OCTO_RUNS:-$PWD/runs}
# The run folder is named after the recipe's `name`: RECIPE may be a file, and `-s name=mine` changes it.
name=$(.venv/bin/octo recipe "$recipe" "$@" 2>/dev/null | sed -n 's/^name: //p' || true)

asked_to_stop=
trap 'asked_to_stop=1; kill -USR1 "$steps" 2>/dev/null || true' USR1
srun --kill-on-bad-exit=1 .venv/bin/octo train "$recipe" "$stage" "$@" &
steps=$!
status=0
wait "$steps" || status=$?
if [ -n "$asked_to_stop" ]; then  # the signal interrupted the first wait
  status=0
  wait "$steps" || status=$?
fi
if [ ! -f "$OCTO_RUNS/${name:-$recipe}/stages/$stage/result.json" ] && [ "$status" -eq 0 ]; then
  if [ -n "$asked_to_stop" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  else  # only the ranks were signalled; fail, so that dependent jobs do not start
    echo "$stage was stopped before its end and saved a checkpoint; submit it again to resume" >&2
    status=75
  fi
fi
exit "$status"
