#!/usr/bin/env bash
# RL on a SLURM cluster: Ray on every node of the job, `octo rl` on the first. The stage must be exported first:
#
#   .venv/bin/octo export octothinker-3b decay-hybrid
#   sbatch --nodes=2 examples/rl.sh octothinker-3b decay-hybrid -s rl.gpus=8 -s rl.engines=8
#
# The actor takes rl.gpus GPUs, vLLM takes rl.engines x rl.engine_gpus; a critic takes rl.gpus more, and so does a
# reference model with a KL term. Further arguments are passed to `octo rl` (-s key=value). Ten minutes before the time
# limit SLURM sends SIGUSR1. The job then stops the run and is requeued, and it resumes from the last checkpoint
# (rl.save_every).
#SBATCH --job-name=octo-rl
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: sbatch [--nodes=N ...] examples/rl.sh RECIPE STAGE [-s key=value ...]" >&2; exit 2; }
recipe=$1 stage=$2
shift 2
cd "${OCTO_HOME:-$SLURM_SUBMIT_DIR}"
export OCTO_RUNS=${OCTO_RUNS:-$PWD/runs}
# The run folder is named after the recipe's `name`: RECIPE may be a file, and `-s name=mine` changes it.
name=$(.venv/bin/octo recipe "$recipe" "$@" 2>/dev/null | sed -n 's/^name: //p' || true)

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))
# Ray finds the GPUs that SLURM allotted on each node. Without CUDA, OCTO_RAY_GPUS gives Ray that many GPU slots.
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-16}" ${OCTO_RAY_GPUS:+--num-gpus="$OCTO_RAY_GPUS"})
ray=(.venv/bin/ray start --block --include-dashboard=false "${resources[@]}")

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait' EXIT
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "${ray[@]}" --head --node-ip-address="$address" --port="$port" &
pids+=($!)
if [ ${#nodes[@]} -gt 1 ]; then
  others=$(IFS=,; echo "${nodes[*]:1}")
  sleep 10
  srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks-per-node=1 --nodelist="$others" \
    "${ray[@]}" --address="$address:$port" &
  pids+=($!)
fi
count_nodes="import ray; ray.init('$address:$port', log_to_driver=False, logging_level='ERROR')
print('nodes', sum(node['Alive'] for node in ray.nodes()))"
joined=
for _ in $(seq 30); do
  joined=$(.venv/bin/python -W ignore -c "$count_nodes" 2>/dev/null | awk '$1 == "nodes" {print $2}' || true)
  [ "${joined:-0}" -ge ${#nodes[@]} ] && break
  sleep 2
done
[ "${joined:-0}" -ge ${#nodes[@]} ] || { echo "rl.sh: ${joined:-0} of ${#nodes[@]} nodes joined Ray at $address:$port; see above" >&2; exit 1; }

asked_to_stop=
trap 'asked_to_stop=1; kill -TERM "$run" 2>/dev/null || true' USR1
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  .venv/bin/octo rl "$recipe" "$stage" -s rl.ray_address="$address:$port" "$@" &
run=$!
status=0
wait "$run" || status=$?
if [ -n "$asked_to_stop" ]; then # the signal interrupted the first wait
  wait "$run" || true
  if [ ! -f "$OCTO_RUNS/${name:-$recipe}/rl/$stage/result.json" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  status=0
fi
exit "$status"
