"""Evaluate a quantized checkpoint, or the float model, with the Runner's own test loop; write a results record."""
import argparse
import json
import os.path as osp
import sys
from contextlib import nullcontext
from functools import reduce

from mmengine.dist import is_main_process

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms.step_list import listed_steps
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, check_data, check_quantized, load_config
from mmquant.datasets.identity import digest_or_none, without_roots
from mmquant.engine.evaluation import nothing_to_find, unlike_evaluations
from mmquant.export.runtime import INTEGER_ONLY, PROVIDERS
from mmquant.utils.building import ConfigError, plain

sys.path.append(osp.dirname(osp.abspath(__file__)))  # for model_zoo
from model_zoo.results import check_publishable, make_record, other_set, results_folder, write_json
from model_zoo.tables import data_name, update_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Evaluate a quantized checkpoint')
    parser.add_argument('config', help='the config it was quantized with')
    parser.add_argument('checkpoint', nargs='?',
                        help='quantized.pth from the work dir of tools/ptq.py, or an .onnx file of tools/export.py')
    parser.add_argument('--runtime', choices=[*PROVIDERS, INTEGER_ONLY], default=PROVIDERS[0],
                        help='what runs an .onnx file')
    parser.add_argument('--float', action='store_true', help='evaluate the float model of the config instead')
    add_common_arguments(parser)
    parser.add_argument('--out', help='file for the metrics (json) or predictions (pkl)')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], default='metrics', help='what to save to --out')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for images with predictions')
    parser.add_argument('--interval', type=int, default=1, help='show every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a shown image stays')
    parser.add_argument('--amp', action='store_true', help='evaluate in autocast')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation of the config (tta_model)')
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin memory in data loaders')
    parser.add_argument('--update-results', action='store_true',
                        help='publish the record: store it below records/, and make the tables of README.md and '
                        'metafile.yml beside the config anew')
    return parser.parse_intermixed_args()  # options may stand between CONFIG and CHECKPOINT


def check_arguments(args) -> None:
    """Raise ConfigError unless there is one model to evaluate, and a record only of a quantized one."""
    if args.float == bool(args.checkpoint):
        raise ConfigError('give the checkpoint of a quantized model, or --float for the float model of the config')
    if args.float and args.update_results:
        raise ConfigError('--update-results publishes quantized models; leave it out with --float')


def merge_test_args(cfg, args):
    """Write the arguments of this tool into the config; drop the train slot."""
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = None
    cfg.param_scheduler, cfg.custom_hooks = None, []
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.resume, cfg.load_from = False, None
    cfg.test_cfg = dict(cfg.get('test_cfg') or {}, fp16=args.amp)
    cfg.test_dataloader.pin_memory = not args.no_pin_memory
    if args.show or args.show_dir:
        hook = cfg.setdefault('default_hooks', {}).setdefault('visualization', dict(type='VisualizationHook'))
        hook.update(enable=True, show=args.show, out_dir=args.show_dir, interval=args.interval,
                    wait_time=args.wait_time)
    if args.tta:
        cfg.model = dict(cfg.get('tta_model') or dict(type='mmpretrain.AverageClsScoreTTA'), module=cfg.model)
    return cfg


def check_unchanged(cfg, args) -> None:
    """Raise ConfigError where arguments make the evaluation another one than the config's."""
    own = load_config(args.config)
    if args.tta or args.amp:
        raise ConfigError('--update-results: published numbers are measured without --tta and --amp')
    for keys in (('model',), ('data_preprocessor',), ('test_evaluator',), ('test_dataloader', 'dataset')):
        given, written = (plain(reduce(lambda node, key: node.get(key) or {}, keys, c)) for c in (cfg, own))
        if given != written:
            raise ConfigError(f'--update-results: --cfg-options change {".".join(keys)}; published numbers are those '
                              'of the config')


def publish(record: dict, meta: dict, args) -> None:
    """Store the record beside the config, if the run was the config's; then the tables."""
    own = load_config(args.config)
    settings = dict(steps=listed_steps(own.train_cfg.steps), quantizer=own.model.quantizer,
                    dataset=without_roots((own.train_cfg.get('dataloader') or {}).get('dataset')))
    check_publishable(meta, plain(settings), record['data'])
    path = write_json(osp.join(results_folder(args.config), f'seed{record["seed"]}.json'), record)
    try:
        update_folder(osp.dirname(args.config))
    except ModuleNotFoundError as error:
        raise ConfigError(f'the record is stored in {path}, but the tables need all configs of the folder and {error}: '
                          'install requirements/mminstall.txt, then run tools/misc/update_readmes.py') from error


def exported(args) -> bool:
    """Whether an exported file is evaluated."""
    return not args.float and str(args.checkpoint).endswith('.onnx')


def evaluate_exported(runner, model, args) -> None:
    """Run the test loop with a runtime in the place of the network; log the metrics."""
    from mmquant.export.evaluation import deployed  # needs the packages of requirements/export.txt
    with deployed(model, args.checkpoint, args.runtime):
        metrics = {key: float(value) for key, value in runner.test().items()}
    runner.logger.info(json.dumps(metrics))
    if args.out and is_main_process():
        write_json(args.out, metrics)


def main() -> None:
    """Load the checkpoint into the quantized model, run the test loop, write the record."""
    args = parse_args()
    check_arguments(args)
    cfg = merge_common(load_config(args.config, args.cfg_options), args)
    check_quantized(cfg)
    different = unlike_evaluations(cfg)
    if args.update_results:
        check_unchanged(cfg, args)
    cfg = merge_test_args(cfg, args)
    check_data(cfg, 'test_dataloader')
    runner = build_runner(cfg)
    model = runner.model.module if args.tta else runner.model
    if different:
        runner.logger.warning(different)
    if exported(args):
        evaluate_exported(runner, model, args)
        return
    meta = model.load_float_checkpoint() if args.float else model.load(args.checkpoint)
    if args.out and args.out_item == 'pred':
        from mmengine.evaluator import DumpResults
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with nullcontext() if args.float else model.frozen(*model.ready):
        metrics = runner.test()
    metrics = {key: float(value) for key, value in metrics.items()}
    if (warning := nothing_to_find(metrics)) is not None:
        runner.logger.warning(warning)
    runner.logger.info(json.dumps(metrics))
    if not is_main_process():
        return
    if args.out and args.out_item == 'metrics':
        write_json(args.out, metrics)
    if args.float:
        return
    dataset = runner.test_loop.dataloader.dataset
    try:
        data = dict(name=data_name(args.config), type=type(dataset).__name__, images=len(dataset),
                    list_sha256=digest_or_none(dataset))
        record = make_record(args.config, args.checkpoint, meta, metrics, data)
    except ConfigError as error:
        if args.update_results:
            raise
        runner.logger.warning(f'No results record: {error}')
        return
    if (lost := other_set(meta, data)) is not None:
        runner.logger.warning(f'The record has no baselines: {lost}')
    path = write_json(osp.join(runner.work_dir, f'record_seed{record["seed"]}.json'), record)
    runner.logger.info(f'Results record: {path}')
    if args.update_results:
        publish(record, meta, args)


if __name__ == '__main__':
    run_as_script(main)
