#!/bin/bash
# Two nodes of 8 GPUs: sbatch configs/slurm/two_nodes.sh CONFIG.yaml key=value ...
# To resume a run:  sbatch configs/slurm/two_nodes.sh --resume RUN
# Four nodes, sharded:  ACCELERATE=configs/accelerate/gpu_32_fsdp2.yaml sbatch --nodes=4 configs/slurm/two_nodes.sh ...
# RUN, the prompts and the caches must lie on a file system that all nodes see.
#SBATCH --job-name=neighbor-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log

set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FIRST="$first" PORT=$((20000 + SLURM_JOB_ID % 20000)) GPUS="${SLURM_GPUS_ON_NODE:-8}"
export ACCELERATE="${ACCELERATE:-configs/accelerate/gpu_32.yaml}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"

# --kill-on-bad-exit: when a rank has died, its node's launcher fails, and that ends the other nodes' too
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$ACCELERATE" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$FIRST" --main_process_port "$PORT" -m neighbor_grpo.cli train "$@"
' train "$@"
