"""Export a quantized checkpoint to ONNX files that integer kernels run, with proof that they compute the same."""
import argparse
import itertools
import os.path as osp
import sys
from dataclasses import asdict

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, calibration_config, check_data, load_config
from mmquant.export.encodings import write_encodings
from mmquant.export.files import export
from mmquant.export.parts import padded
from mmquant.export.qonnx import write_qonnx
from mmquant.export.verify import deployed_metrics, note_verdict, verify
from mmquant.models.detection import is_detector
from mmquant.utils.files import locked, read_json
from mmquant.visualization.deployed import add_deployed

sys.path.append(osp.dirname(osp.abspath(__file__)))  # for model_zoo
from model_zoo.results import publish_deployed
from model_zoo.tables import update_folder

FORMATS = dict(qonnx=(write_qonnx, '_qonnx.onnx'), encodings=(write_encodings, '.encodings'))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a quantized model to ONNX')
    parser.add_argument('config', help='the config it was quantized with')
    parser.add_argument('checkpoint', help='quantized.pth from the work dir of tools/ptq.py')
    add_common_arguments(parser)
    parser.add_argument('--profile', default='ort_cpu', help='what the target takes: ort_cpu (default), openvino_cpu')
    parser.add_argument('--packed', action='store_true', help='also write files with weights of 4 and 2 bits')
    parser.add_argument('--formats', nargs='+', choices=sorted(FORMATS), default=[],
                        help='other formats to write beside: qonnx (Quant nodes), encodings (AIMET 2.0.0)')
    parser.add_argument('--batch', type=int, metavar='N', help='fixed batch size; default: any')
    parser.add_argument('--allow-float', action='store_true',
                        help='keep layers that the target does not take in float, instead of an error')
    parser.add_argument('--verify', action='store_true',
                        help='compare the runtime with an integer executor and the simulation, and evaluate in it')
    parser.add_argument('--update-results', action='store_true',
                        help='with --verify: publish the runtime metrics in the record of the seed, and in the tables')
    parser.add_argument('--num-images', type=int, default=64, metavar='N', help='images of the comparison; default 64')
    return parser.parse_args()


def main() -> None:
    """Load, export next to the checkpoint's evaluation, verify."""
    args = parse_args()
    cfg = calibration_config(merge_common(load_config(args.config, args.cfg_options), args))
    check_data(cfg, 'train_dataloader', *(['test_dataloader'] if args.verify else []))
    with locked(cfg.work_dir):
        runner = build_runner(cfg)
        model = runner.model
        meta = model.load(args.checkpoint)
        chunks, samples = runner.train_loop.collect(model)
        model.architecture.dataset_meta = dict(runner.train_loop.dataloader.dataset.metainfo)  # for the sidecar
        chunks = _of_one_size(chunks, is_detector(model.architecture))
        path = osp.join(cfg.work_dir, 'model.onnx')
        files = export(model, path, chunks, args.profile, args.packed, args.batch, args.allow_float, samples)
        for name, file in itertools.product(args.formats, files.qdq):
            write, ending = FORMATS[name]
            runner.logger.info(write(osp.splitext(file)[0] + ending, file))
        checkpoint = model.save(osp.join(cfg.work_dir, 'deployed.pth'), meta)
        for file in (*files.qdq, *files.packed):
            runner.logger.info(f'{file}: {osp.getsize(file) / 1e6:.3f} MB')
        runner.logger.info(f'The same network for tools/test.py: {checkpoint}')
        if not args.verify:
            return
        verdict = verify(model, files, chunks, args.num_images, classifier=not is_detector(model.architecture))
        verdict.metrics = deployed_metrics(model, files, runner)
        verdict.evaluated = len(runner.test_loop.dataloader.dataset)
        note_verdict(cfg.work_dir, files, verdict)
        report = osp.join(cfg.work_dir, 'report.html')
        if osp.isfile(report):
            add_deployed(report, read_json(osp.join(cfg.work_dir, 'results.json'))['deployed'])
        if args.update_results:
            publish(args.config, meta['seed'], files, verdict)
        runner.logger.info(verdict.text())
        if verdict.failures():
            raise ValueError(f'the exported model is not verified: {"; ".join(verdict.failures())}. The files '
                             f'stay, see {osp.join(cfg.work_dir, "results.json")}')


def publish(config: str, seed: int, files, verdict) -> None:
    """Store the runtime's metrics in the published record, and make the tables anew."""
    facts = {key: value for key, value in asdict(verdict).items() if key != 'nodes'}
    simulated, ran = ({name: pair[i] for name, pair in verdict.metrics.items()} for i in (0, 1))
    sizes = dict(qdq=sum(map(osp.getsize, files.qdq)), packed=sum(map(osp.getsize, files.packed)) or None)
    publish_deployed(config, seed, dict(facts, metrics=ran), simulated, sizes)
    update_folder(osp.dirname(config))


def _of_one_size(chunks: list, detector: bool) -> list:
    """Images of a detector padded to the largest sides among them; other images as they are."""
    if not detector:
        return chunks
    height, width = (max(x.shape[axis] for x in chunks) for axis in (2, 3))
    return [padded(x, (x.shape[1], height, width)) for x in chunks]


if __name__ == '__main__':
    run_as_script(main)
