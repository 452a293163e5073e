#!/usr/bin/env bash
# One node with 8 GPUs. ENGINE is ddp, zero2, zero3, zero3_offload or fsdp2; everything after it goes to amopo train.
#   examples/cluster/torchrun.sh zero3 --config examples/cluster/paper.yaml --output-dir runs/mine
#   NPROC=2 examples/cluster/torchrun.sh ddp --use-cpu --model ... (any number of processes)
set -euo pipefail
here=$(dirname "$0")
engine=${1:?name an engine: ddp, zero2, zero3, zero3_offload or fsdp2}
shift
case $engine in
  ddp) options=() ;;
  zero2 | zero3 | zero3_offload) options=(--deepspeed "$here/$engine.json") ;;
  fsdp2) options=(--fsdp true --fsdp-config "$here/fsdp2.json") ;;
  *) echo "unknown engine $engine: ddp, zero2, zero3, zero3_offload or fsdp2" >&2; exit 2 ;;
esac
# On Ctrl-C torchrun would kill its ranks after 30 s, in the middle of a checkpoint; from torch 2.12 on it reads this.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec torchrun --standalone --nproc-per-node "${NPROC:-8}" -m amopo train "${options[@]}" "$@"
