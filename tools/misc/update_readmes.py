"""Make the tables of every config folder's README.md and its metafile.yml anew, from its records."""
import argparse
import os.path as osp
import sys
from glob import glob

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import run_as_script
from mmquant.apis.config import calibration_config, load_config
from mmquant.apis.prepare import model_cost_of

sys.path.append(osp.dirname(osp.dirname(osp.abspath(__file__))))  # for model_zoo, in tools
from model_zoo.results import results_folder, write_json
from model_zoo.tables import update_folder, updated_files

CONFIGS = osp.join(osp.dirname(osp.abspath(__file__)), '..', '..', 'configs')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='*', help='config folders; default: all with a README.md')
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a file is not up to date')
    parser.add_argument('--costs', action='store_true',
                        help='first compute parameters, operations and size of each config that has no cost.json yet; '
                        'needs no data and no weights')
    return parser.parse_args()


def compute_costs(folder: str) -> None:
    """Write ``cost.json`` of every config of a folder that has none."""
    for config in sorted(glob(osp.join(folder, '*.py'))):
        path = osp.join(results_folder(config), 'cost.json')
        if osp.exists(path):
            continue
        cost = model_cost_of(calibration_config(load_config(config))).to_dict()
        del cost['layers']
        write_json(path, cost)


def main() -> None:
    """Write, or compare."""
    args = parse_args()
    folders = args.folders or sorted(map(osp.dirname, glob(osp.join(CONFIGS, '*', 'README.md'))))
    stale = []
    for folder in folders:
        if args.costs:
            compute_costs(folder)
        if not args.check:
            update_folder(folder)
            continue
        for path, text in updated_files(folder).items():
            with open(path, encoding='utf-8') as f:
                if f.read() != text:
                    stale.append(osp.relpath(path))
    if stale:
        sys.exit(f'not up to date: {", ".join(stale)}; run python tools/misc/update_readmes.py')


if __name__ == '__main__':
    run_as_script(main)
