#!/usr/bin/env bash
# Quantize in several processes of this or several machines: tools/dist_ptq.sh CONFIG GPUS [arguments of tools/ptq.py]
set -euo pipefail

CONFIG=$1
GPUS=$2
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}

PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}" \
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$NNODES" --node_rank="$NODE_RANK" --nproc_per_node="$GPUS" \
  --master_addr="$MASTER_ADDR" --master_port="$PORT" "$(dirname "$0")/ptq.py" "$CONFIG" --launcher pytorch "${@:3}"
