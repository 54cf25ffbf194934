#!/bin/bash
# One node, any length: the job is stopped before its time limit, put back in the queue, and resumed, until the run is finished.
#   sbatch configs/slurm/requeue.sh RUN CONFIG.yaml key=value ...
# RUN is the run directory; RUN, the prompts and the caches must lie on a file system that all nodes see.
#SBATCH --job-name=neighbor-grpo
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -uo pipefail

run="$1"
shift
if [ -f "$run/config.yaml" ]; then arguments=(--resume "$run"); else arguments=("run_dir=$run" "$@"); fi

accelerate launch --config_file "${ACCELERATE:-configs/accelerate/gpu_8.yaml}" -m neighbor_grpo.cli train "${arguments[@]}" &
launcher=$!
# Slurm warns this shell; every rank gets the signal and saves, then the launcher ends
trap 'warned=1; pkill -USR1 -P "$launcher"' USR1
wait "$launcher"
code=$?
[ -n "${warned:-}" ] && wait "$launcher" && code=$?
if [ -n "${warned:-}" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
