"""Accuracy of an exported model beside ONNX Runtime's own static quantizer, on the same images, in the same runtime.

Both calibrate on the first images of the calibration set; the test loop of the config evaluates the files, with
the model's own post-processing. Exact sums for all (``session.x64quantprecision``).
"""
from __future__ import annotations

import argparse
import copy
import os
import tempfile
from pathlib import Path

import torch
from benchmarks import add_out_argument, show
from deploy_files import write_static

from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, calibration_config, check_data, load_config
from mmquant.export._extras import need
from mmquant.export.evaluation import deployed, runner_of
from mmquant.export.files import read_sidecar
from mmquant.export.onnx_graph import OnnxGraph
from mmquant.export.parts import in_runtime, padded, parts_of
from mmquant.export.passes import flatten_to_reshape, pool_globally
from mmquant.export.runtime import RuntimeSession

METHODS = ('MinMax', 'Entropy', 'Percentile')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='the config that the model was quantized with')
    parser.add_argument('exported', help='model.onnx of tools/export.py; of one part')
    add_common_arguments(parser)
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS, help='of the static quantizer')
    parser.add_argument('--num-images', type=int, default=128, help='calibration images of the static quantizer')
    add_out_argument(parser)
    return parser.parse_args()


def write_float(model, shape: tuple[int, ...], path: Path) -> None:
    """The float model of a config, for any batch size, with BatchNorm folded."""
    part, sample = parts_of(model)[0], torch.zeros(2, *shape)
    with torch.no_grad():
        program = torch.onnx.export(part, (sample, ), dynamo=True, opset_version=21, verbose=False,
                                    input_names=['images'], external_data=False,
                                    dynamic_shapes=({0: torch.export.Dim('batch', min=1)}, ))
    for change in (pool_globally, flatten_to_reshape):
        change(OnnxGraph(program.model_proto))
    need('onnx').save(program.model_proto, path)


def evaluate(runner, model, path: Path, shape: tuple[int, ...]) -> float:
    """First metric of the test loop."""
    run = runner_of(RuntimeSession(path), None)
    with in_runtime(model, [lambda x: run(padded(x, shape))], torch.zeros(1, *shape)):
        return float(next(iter(runner.test().values())))


def main() -> None:
    """Write the static files, evaluate all."""
    args = parse_args()
    cfg = calibration_config(merge_common(load_config(args.config, args.cfg_options), args))
    check_data(cfg, 'train_dataloader', 'test_dataloader')
    runner = build_runner(cfg)
    model = runner.model
    model.load_float_checkpoint()
    shape = tuple(read_sidecar(args.exported)['input']['shape'])
    chunks, _ = runner.train_loop.collect(model)
    images = torch.cat([padded(x, shape) for x in chunks])[:args.num_images]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {'float': Path(folder) / 'float.onnx'}
        write_float(copy.deepcopy(model), shape, files['float'])
        for method in args.methods:
            files[f'static, {method}'] = Path(folder) / f'{method}.onnx'
            write_static(files['float'], images, files[f'static, {method}'], method)
        files['mmquant'] = Path(args.exported)
        with deployed(model, args.exported):
            pass  # it is whole, and of one part
        for label, path in files.items():
            rows.append((label, evaluate(runner, model, path, shape), os.path.getsize(path) / 1e6))
    title = f'{Path(args.config).stem} beside the static quantizer of ONNX Runtime, {len(images)} calibration images'
    print(show(title, ['file', 'metric', 'MB'], rows, torch.device('cpu'), args.out))


if __name__ == '__main__':
    run_as_script(main)
