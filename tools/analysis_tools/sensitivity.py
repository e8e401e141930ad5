"""Sensitivity of each layer of a quantized checkpoint, worst first: table, CSV, PNG, and a section of the run's report.

For each layer: SQNR of its output, the metric with only this layer quantized, and with only this layer kept float.
"""
import argparse
import csv
import os.path as osp
import re
from dataclasses import asdict, fields

import mmengine

import mmquant  # noqa: F401  checks the versions
from mmquant.analysis.sensitivity import LayerSensitivity, quantizers_of, sensitivities
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, check_data, check_quantized, load_config
from mmquant.engine.evaluation import nothing_to_find
from mmquant.utils.building import ConfigError, closest
from mmquant.utils.files import replacing
from mmquant.utils.tables import render
from mmquant.visualization.figures import sensitivity_figure
from mmquant.visualization.report import add_sensitivity


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='the config it was quantized with')
    parser.add_argument('checkpoint', help='quantized.pth from the work dir of tools/ptq.py')
    add_common_arguments(parser)
    parser.add_argument('--metric', help='metric to compare, larger is better; default: the evaluator\'s first')
    parser.add_argument('--images', type=int, help='evaluate only the first images of the test set')
    parser.add_argument('--layers', default='.*', help='regular expression of the layers to measure')
    parser.add_argument('--sqnr-only', action='store_true', help='no evaluations: one forward pass')
    parser.add_argument('--batches', type=int, default=4, help='batches of the test set for the SQNR; default 4')
    return parser.parse_args()


def evaluator(runner, metric):
    """A function that evaluates the model as it is switched and returns one metric."""

    def evaluate() -> float:
        metrics = runner.test()
        if not metrics:  # nothing was detected
            return 0.0
        if (warning := nothing_to_find(metrics)) is not None:
            raise ConfigError(warning)
        name = metric or next(iter(metrics))
        if name not in metrics:
            raise ConfigError(f'--metric: the evaluator has no {name!r}; {closest(name, metrics)}')
        return float(metrics[name])

    return evaluate


def write_csv(path: str, rows: list[LayerSensitivity]) -> None:
    """One line a layer, worst first; figures with four decimals."""
    with replacing(path) as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(LayerSensitivity)])
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
                         for row in rows)


def restrict_to_images(loop) -> None:
    """Let COCO metrics count the objects of the images of a test loop only, not of all in the annotation file."""
    dataset = loop.dataloader.dataset
    for metric in loop.evaluator.metrics:
        if hasattr(metric, 'img_ids'):
            metric.img_ids = [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


def main() -> None:
    """Load, measure, write."""
    args = parse_args()
    cfg = merge_common(load_config(args.config, args.cfg_options), args)
    check_quantized(cfg)
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.custom_hooks, cfg.resume, cfg.load_from = [], False, None
    if args.images:
        cfg.test_dataloader.dataset.indices = args.images
    check_data(cfg, 'test_dataloader')
    runner = build_runner(cfg)
    model = runner.model
    model.load_float_checkpoint()  # one layer at a time is quantized, the others are float
    model.load(args.checkpoint, float_weights=True)
    runner._test_loop = runner.build_test_loop(runner._test_loop)
    restrict_to_images(runner.test_loop)
    batches = []
    for data, _ in zip(runner.test_loop.dataloader, range(args.batches)):
        data = model.data_preprocessor(data, False)
        batches.append((data['inputs'], data.get('data_samples')))
    model.observe(*(None if x is None else x[:2] for x in batches[0]))
    layers = quantizers_of(model)
    names = [n for n in layers if re.search(args.layers, n)]
    if not names:
        raise ConfigError(f'--layers {args.layers!r} matches none of the {len(layers)} quantized layers')
    rows, whole = sensitivities(model, batches, None if args.sqnr_only else evaluator(runner, args.metric), names,
                                lambda done, total: runner.logger.info(f'{done} of {total} layers'))
    mmengine.mkdir_or_exist(cfg.work_dir)
    stem = osp.join(cfg.work_dir, 'sensitivity')
    write_csv(f'{stem}.csv', rows)
    sensitivity_figure(rows).savefig(f'{stem}.png', dpi=120)
    title = 'Sensitivity' + ''.join(f', {key} {value:.4f}' for key, value in whole.items())
    columns = ('sqnr', 'only_quantized', 'drop', 'only_float', 'gain') if whole else ('sqnr',)
    runner.logger.info('\n' + render(title, ('layer', 'W bits', 'input bits', *columns), [
        (r.name, str(r.w_bits or 'float'), str(r.a_bits or 'float'), *(getattr(r, c) for c in columns)) for r in rows]))
    runner.logger.info(f'written: {stem}.csv, {stem}.png')
    report = osp.join(osp.dirname(args.checkpoint), 'report.html')
    if osp.exists(report) and add_sensitivity(report, rows):
        runner.logger.info(f'added to {report}')


if __name__ == '__main__':
    run_as_script(main)
