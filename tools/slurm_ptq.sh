#!/usr/bin/env bash
# Quantize under slurm: tools/slurm_ptq.sh PARTITION JOB_NAME CONFIG [arguments of tools/ptq.py]
set -euo pipefail

PARTITION=$1
JOB_NAME=$2
CONFIG=$3
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
SRUN_ARGS=${SRUN_ARGS:-}

PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}" \
exec srun -p "$PARTITION" --job-name="$JOB_NAME" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
  --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" --kill-on-bad-exit=1 $SRUN_ARGS \
  "${PYTHON:-python}" -u "$(dirname "$0")/ptq.py" "$CONFIG" --launcher slurm "${@:4}"
