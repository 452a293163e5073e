#!/usr/bin/env bash
# 4 nodes of 8 A100, as in the paper, with ZeRO-3:  sbatch examples/cluster/slurm.sh
# Another engine or other settings:                 ENGINE=fsdp2 sbatch examples/cluster/slurm.sh --learning-rate 5e-7
#SBATCH --job-name=amopo
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
engine=${ENGINE:-zero3}
case $engine in
  ddp) options=() ;;
  zero2 | zero3 | zero3_offload) options=(--deepspeed "examples/cluster/$engine.json") ;;
  fsdp2) options=(--fsdp true --fsdp-config examples/cluster/fsdp2.json) ;;
  *) echo "unknown engine $engine: ddp, zero2, zero3, zero3_offload or fsdp2" >&2; exit 2 ;;
esac
# TERM comes 120 s before the end (--signal above): time for a checkpoint. torchrun would kill its ranks after 30 s; from
# torch 2.12 on it reads this instead.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
# srun of Slurm 22.05 and later does not take the job's --cpus-per-task from the job.
export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-64}}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# torchrun ends all ranks with an error when one dies; srun then ends the other nodes.
exec srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${NPROC:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 10000))" --rdzv-id "$SLURM_JOB_ID" \
  -m amopo train --config examples/cluster/paper.yaml "${options[@]}" "$@"
