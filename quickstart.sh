#!/usr/bin/env bash
# Set up .venv, quantize a small classifier to 2-bit weights and 4-bit activations, export it to ONNX and verify the
# file. Arguments go to tools/ptq.py; --work-dir, --cfg-options and --seed to tools/export.py as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash tools/setup_env.sh run
config=configs/brecq/resnet18_w2a4_digits.py
.venv/bin/python tools/ptq.py $config "$@"

work_dir=work_dirs/resnet18_w2a4_digits option='' same=()
for word in "$@"; do
  case $word in
    --dry-run | --help | -h) exit ;; # nothing was quantized
    -*) option=${word%%=*} ;;
  esac
  case $option in
    --work-dir) work_dir=${word#--work-dir=} same+=("$word") ;;
    --cfg-options | --seed) same+=("$word") ;;
  esac
done
exec .venv/bin/python tools/export.py $config "$work_dir/quantized.pth" --verify ${same[@]+"${same[@]}"}
