#!/usr/bin/env bash
# Set up .venv, quantize a small classifier to 2-bit weights and 4-bit activations, export it to ONNX and verify the
# files. Arguments go to tools/ptq.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash tools/setup_env.sh run
name=resnet18_w2a4_digits
work_dir=work_dirs/$name
.venv/bin/python tools/ptq.py "configs/brecq/$name.py" "$@"
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run | --help | -h) exit ;; # nothing was quantized
    --work-dir) work_dir=$2 ;;
    --work-dir=*) work_dir=${1#*=} ;;
  esac
  shift
done
# The config in the work dir is the run's, with all --cfg-options.
exec .venv/bin/python tools/export.py "$work_dir/$name.py" "$work_dir/quantized.pth" --verify
