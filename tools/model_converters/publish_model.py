"""Make a training checkpoint ready for publication: weights only, measured accuracy in its meta, checksum."""
import argparse
import os.path as osp
from typing import Optional

from mmengine.logging import MMLogger
from mmengine.runner import Runner

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import run_as_script
from mmquant.apis.config import check_data, load_config
from mmquant.utils.files import sha256_of, write_text
from mmquant.utils.tensor_files import CheckpointError, read_tensors, write_atomically


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Publish the weights of a checkpoint')
    parser.add_argument('config', help='config of the model, with a test data set')
    parser.add_argument('in_file', help='checkpoint of a training run')
    parser.add_argument('out_file', help='checkpoint to write, tensors and plain values only')
    parser.add_argument('--command', help='the training command, recorded in the meta')
    parser.add_argument('--checksums', help='file in the format of sha256sum, in which to set the line of out_file')
    parser.add_argument('--work-dir', default='./work_dirs/publish_model', help='folder for the log of the evaluation')
    return parser.parse_args()


def strip(checkpoint: dict, config: str, command: Optional[str]) -> dict:
    """Keep the weights and plain meta values of a training checkpoint.

    Args:
        checkpoint: What mmengine's CheckpointHook saved.
        config: Name of the config, recorded in the meta.
        command: Training command, recorded in the meta.

    Returns:
        dict: ``state_dict`` of contiguous CPU tensors and ``meta`` with config, command, seed, epoch, dataset_meta.
    """
    meta = checkpoint.get('meta', {})
    classes = meta['dataset_meta'].get('classes', ()) if isinstance(meta.get('dataset_meta'), dict) else ()
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint['state_dict'].items()}
    kept = dict(config=config, command=command, seed=meta.get('seed'), epoch=meta.get('epoch'))
    kept['dataset_meta'] = dict(classes=list(classes))
    return dict(meta=kept, state_dict=state_dict)


def measure(config: str, in_file: str, work_dir: str) -> dict:
    """Evaluate the checkpoint on the config's test set; returns plain floats by metric name."""
    cfg = load_config(config)
    check_data(cfg, 'test_dataloader')
    cfg.work_dir, cfg.load_from = work_dir, in_file
    metrics = Runner.from_cfg(cfg).test()
    return {name: float(value) for name, value in metrics.items()}


def set_checksum(checksums: str, file: str, digest: str) -> None:
    """Replace or add the line of ``file`` (its base name) in a file that ``sha256sum --check`` understands."""
    name = osp.basename(file)
    lines = []
    if osp.exists(checksums):
        with open(checksums) as stream:
            lines = [line for line in stream.read().splitlines() if line.split()[-1] != name]
    write_text(checksums, '\n'.join(sorted([*lines, f'{digest}  {name}'], key=lambda line: line.split()[-1])) + '\n')


def main() -> None:
    """Evaluate, strip, save, and log the checksum."""
    args = parse_args()
    training = read_tensors(args.in_file)  # no code in it runs, before as after the evaluation
    if not isinstance(training, dict) or not isinstance(training.get('state_dict'), dict):
        raise CheckpointError(f'{args.in_file} is no checkpoint of a training run: it has no "state_dict"')
    metrics = measure(args.config, args.in_file, args.work_dir)
    checkpoint = strip(training, args.config, args.command)
    checkpoint['meta']['metrics'] = metrics
    write_atomically(args.out_file, checkpoint)
    digest = sha256_of(args.out_file)
    if args.checksums:
        set_checksum(args.checksums, args.out_file, digest)
    logger = MMLogger.get_current_instance()
    logger.info(f'{args.out_file}: {osp.getsize(args.out_file)} bytes, sha256 {digest}, {metrics}')


if __name__ == '__main__':
    run_as_script(main)
