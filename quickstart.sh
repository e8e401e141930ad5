#!/usr/bin/env bash
# Set up .venv and quantize a small classifier to 2-bit weights and 4-bit activations. Arguments go to tools/ptq.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash tools/setup_env.sh run
exec .venv/bin/python tools/ptq.py configs/brecq/resnet18_w2a4_digits.py "$@"
