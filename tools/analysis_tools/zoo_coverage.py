"""Quantize one small model of every family: backbones of mmpretrain, detectors of mmdet, torchvision, timm.

Random weights, one random image, W8A8 with min-max ranges; each model in a process of its own, with one thread and a
time limit. Results go into a JSON file, which a later run continues, and from there into a table in markdown.
"""
import argparse
import copy
import importlib.util
import itertools
import os.path as osp
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob

import export_coverage
from export_coverage import export_apart
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from model_coverage import LOWEST, Coverage, measure_apart
from noise_sources import NoiseSources

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import run_as_script
from mmquant.registry import MODELS
from mmquant.utils.files import read_json, write_json, write_text

# Size words of config names, smallest first.
SIZES = ('atto', 'nano', 'xx-?small', 'x-?small', 'tiny', 'b0', 's12', 'r18', 'small', r'resnet18|[-_]18',
         r'[-_]s0?[-_]', '400mf', '31B', r'r50|[-_0a-z]50', 'w18', 'd53', r'[-_]b1[-_]', '13',
         'base', '101', 'large', 'huge', 'XL', '-g-')
# timm marks most sizes by letters, and its numbers are sizes too.
TIMM_SIZES = ('atto', 'femto', 'pico', 'nano', 'xx-?s', r'_x-?s(_|mall|$)', 'tiny', '18', '_b?0?50|_128$',
              r'_[bft][08]$', r'[_d2]s\d?(_p|$)', 'small', r'_m\d?$')
# Folders of mmdet that hold no detectors: trackers, video, other tasks, training recipes of detectors in other folders.
NO_FAMILIES = re.compile('_base_|albu|bytetrack|ocsort|sort|qdtrack|masktrack|vis$|reid|cityscapes|common|deepfashion|'
                         'dsdl|instaboost|legacy|lvis|misc|objects365|openimages|pascal|resnet_strikes|seesaw|'
                         'selfsup|simple_copy|strong_base|timm_ex|v3det|wider|soft_teacher|fast_rcnn|scratch|gn$|gn.ws')
# Exported by mmpretrain's backbones, but no classification backbones of their own: a base class, a wrapper, one of
# another package, two for masked pre-training.
NO_BACKBONES = ('CSPNet', 'LoRAModel', 'TIMMBackbone', 'SparseConvNeXt', 'SparseResNet')
FIXED_SHAPES = dict(LeNet5=(1, 32, 32))
FOR_INFERENCE = dict(use_torchvision=False, num_cp=0)  # in any part of a model config
PROPOSALS = 20  # of a region proposal network; 1000 on random weights take minutes and show the same layers
ZOOS = ('mmpretrain', 'mmdet', 'torchvision', 'timm')
TIMM_SIDE = 64
SIDE = 320  # smaller images leave nothing on the highest level of some pyramids


def first_word(words: tuple[str, ...], name: str) -> int:
    """Number of the first size word that is in a name."""
    return next((i for i, word in enumerate(words) if re.search(word, name)), len(words))


def size_rank(path: str) -> tuple:
    """Sorts configs by the size word in their names, then by length."""
    name = osp.basename(path)
    return first_word(SIZES, name), len(name), name


def timm_rank(name: str) -> tuple:
    """Sorts timm's names by size: word, then numbers; last what timm has for its own tests."""
    numbers = [int(x) for x in re.findall(r'\d+', name)]
    return name.startswith('test_'), first_word(TIMM_SIZES, name), numbers, len(name), name


def config_folder(package: str) -> str:
    """Folder of the configs that an installed package ships."""
    module = __import__(package)
    return osp.join(osp.dirname(module.__file__), '.mim', 'configs')


def classification_models() -> dict[str, list[tuple[str, dict]]]:
    """Backbone -> [(config, model config)]: the smallest shipped classifier, else the backbone with its defaults."""
    import mmpretrain.models.backbones as backbones
    found: dict[str, tuple[str, dict]] = {}
    root = config_folder('mmpretrain')
    for path in sorted(glob(osp.join(root, '**', '*.py'), recursive=True), key=size_rank):
        if '_base_' in path or 'timm' in path or not re.search('in1k|in21k|cifar|mnist', path):
            continue
        try:
            model = Config.fromfile(path).model
        except Exception:  # needs a file that is not there
            continue
        kind = model.get('backbone', {}).get('type', '')
        if model.type == 'ImageClassifier' and kind not in found:
            found[kind] = osp.relpath(path, root), model
    for kind in sorted(set(backbones.__all__) - set(found)):
        found[kind] = '(defaults)', dict(type='ImageClassifier', backbone=dict(type=kind))
    return {kind: [found[kind]] for kind in sorted(found) if kind not in NO_BACKBONES}


def detection_models() -> dict[str, list[tuple[str, dict]]]:
    """Family (config folder) -> [(config, model config)]: the smallest shipped detectors, up to three."""
    import mmdet.datasets  # noqa: F401  registers some data preprocessors
    import mmdet.models  # noqa: F401  once, before processes are forked
    found: dict[str, list] = {}
    root = config_folder('mmdet')
    for folder in sorted(glob(osp.join(root, '*'))):
        family = osp.basename(folder)
        if NO_FAMILIES.search(family):
            continue
        for path in sorted(glob(osp.join(folder, '*.py')), key=size_rank):
            try:
                model = Config.fromfile(path).get('model')
            except Exception:  # needs a file that is not there
                continue
            if model:
                found.setdefault(family, []).append((osp.relpath(path, root), model))
            if len(found.get(family, ())) == 3:
                break
    return found


def torchvision_models() -> dict[str, list[tuple[str, Callable]]]:
    """Family (module) -> [(name, builder)]: the classifier with the fewest parameters."""
    import torchvision.models as zoo
    found: dict[str, list] = {}
    for name in zoo.list_models(module=zoo):
        family = zoo.get_model_builder(name).__module__.rpartition('.')[2]
        found.setdefault(family, []).append((zoo.get_model_weights(name).DEFAULT.meta['num_params'], name))
    plain = dict(googlenet=dict(init_weights=False, aux_logits=False),
                 inception_v3=dict(init_weights=False, aux_logits=False))
    return {family: [(name, partial(zoo.get_model, name, weights=None, **plain.get(name, {})))]
            for family, names in sorted(found.items()) for _, name in [min(names)]}


def timm_models() -> dict[str, list[tuple[str, Callable]]]:
    """Family (module of timm) -> [(name, builder)]: the smallest as its name says.

    One of a fixed image size is built for small images first, then as it is.
    """
    import timm
    found = {family: min(timm.list_models(module=family), key=timm_rank, default='') for family in timm.list_modules()}
    small = {name: dict(img_size=TIMM_SIDE) for name in found.values()
             if name and getattr(timm.get_pretrained_cfg(name), 'fixed_input_size', False)}
    return {family: [(name, partial(timm.create_model, name, **kwargs))
                     for kwargs in ([small[name]] if name in small else []) + [{}]]
            for family, name in sorted(found.items()) if name}


def shape_of(model: dict | Callable, side: int) -> tuple[int, int, int]:
    """(channels, height, width) of an image: the size that the model is fixed to, else ``side``."""
    if callable(model):
        return 3, side, side
    backbone = model.get('backbone') or {}
    channels = backbone.get('in_channels') or backbone.get('in_chans') or 3
    size = backbone.get('img_size') or (model.get('data_preprocessor') or {}).get('size')
    if isinstance(channels, (list, tuple)) or channels > 16:
        channels = 3
    size = size[0] if isinstance(size, (list, tuple)) else size
    return FIXED_SHAPES.get(backbone.get('type'), (channels, size or side, size or side))


def parts_of(config) -> Iterator[dict]:
    """All dicts of a nested config, itself included."""
    if isinstance(config, dict):
        yield config
    values = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ()
    for value in values:
        yield from parts_of(value)


def prepared(model: dict, package: str) -> dict:
    """A copy of a model config for random weights.

    A region proposal network hands on few regions; a teacher's checkpoint is not loaded, and its config, a path in the
    package's repository, is read from the configs that the package ships. Regions are pooled by mmcv's operator: that
    of torchvision, which computes the same, takes gigabytes where its compiled part does not fit torch. Activations
    are not checkpointed, which only training does and another package is needed for.
    """
    model = copy.deepcopy(model)
    for part in parts_of(model):
        part.update({key: value for key, value in FOR_INFERENCE.items() if key in part})
    model.pop('teacher_ckpt', None)
    if isinstance(model.get('teacher_config'), str):
        repository = osp.dirname(config_folder(package))
        model['teacher_config'] = Config.fromfile(osp.join(repository, model['teacher_config']))
    proposals = (model.get('test_cfg') or {}).get('rpn')
    if proposals:
        proposals['max_per_img'] = PROPOSALS
    return model


def _build(model: dict, scope: str):
    return MODELS.build(dict(prepared(model, scope), _scope_=scope))


def measure(scope: str, models: dict, sides: tuple[int, ...], limit: int, rows: dict, save) -> None:
    """Measure every model that ``rows`` does not hold yet: the first config and size that works, else the first."""
    if scope not in ('torchvision', 'timm'):
        init_default_scope(scope)
    for name, choices in models.items():
        if name in rows:
            continue
        tried = []
        for (path, model), side in itertools.product(choices, sides):
            build = model if callable(model) else partial(_build, model, scope)
            found = measure_apart(build, shape_of(model, side), limit)
            tried.append(dict(vars(found), config=path))
            if not found.reason:
                break
        rows[name] = tried[-1] if not tried[-1]['reason'] else tried[0]
        save(name)


def measure_exports(scope: str, models: dict, sides: tuple[int, ...], limit: int, rows: dict, save) -> None:
    """Export every measured model that has no export yet, from its row's config, at the first size that it takes."""
    if scope not in ('torchvision', 'timm'):
        init_default_scope(scope)
    for name, choices in models.items():
        if name not in rows or rows[name].get('export') or not rows[name]['layers']:
            continue
        tried = []
        for (path, model), side in itertools.product(choices, sides):
            if path != rows[name]['config']:
                continue
            build = model if callable(model) else partial(_build, model, scope)
            tried.append(export_apart(build, shape_of(model, side), limit))
            if tried[-1].calibrated or not tried[-1].reason:
                break
        if tried:
            rows[name]['export'] = vars(tried[-1] if tried[-1].calibrated else tried[0])
            save(name)


def table(rows: dict, first: str) -> str:
    """Markdown table of some rows and its percentage."""
    found = {n: (r['config'], coverage_of(r)) for n, r in rows.items()}
    good = sum(c.ok for _, c in found.values())
    lines = [f'{good} of {len(found)} ({good / max(1, len(found)):.1%}) are quantized completely.', '',
             f'| {first} | Config | Layers | Units (layer/block/stage) | SQNR (dB) | Time (s) | Remark |',
             '| --- | --- | :---: | :---: | ---: | ---: | --- |']
    for name, (path, c) in sorted(found.items(), key=lambda item: item[0].lower()):
        units = '/'.join(str(c.units.get(g, '-')) for g in ('layer', 'block', 'stage'))
        low = '' if c.reason or c.sqnr >= LOWEST else f'SQNR below {LOWEST} dB'
        remarks = [f'{low}: {NoiseSources.from_json(c.noise)}' if c.noise else low, c.reason.replace('|', '/'),
                   f'{c.unreached} layers without influence' if c.unreached else '',
                   f'{c.constant} layers read no data' if c.constant else '',
                   f'{c.functional} layers are used by function, float' if c.functional else '',
                   f'{c.unnamed} float parameters without a reason' if c.unnamed else '']
        remark = '; '.join(r for r in remarks if r)
        lines.append(f'| {name} | `{path}` | {c.quantized}/{c.layers} | {units} | {c.sqnr:.1f} | {c.seconds:.0f} | '
                     f'{remark} |')
    return '\n'.join(lines) + '\n'


HEADER = '''# Coverage of the model zoos

Made by `tools/analysis_tools/zoo_coverage.py`: random weights, one random image of 64 pixels (or the size that a model
is fixed to; detectors: 320), weights and activations of 8 bits with min-max ranges, nearest rounding, no change in any
model's code. One small config stands for each classification backbone and for each family of classifiers or detectors;
region proposal networks hand on 20 regions. Batch normalization divides by the size of what it reads of the image, as a
trained one does, or the signal would double with every residual block. "Layers" are those with quantized weights and
all with weights. Layers that the raw outputs do not depend on (auxiliary heads, branches for training) do not count,
nor do layers that read no data (tables of relative positions), whose outputs are known before any image is. Layers
whose weight is read by a function instead of calling the layer stay float, and such a model counts as not quantized
completely; so does one with a parameter of two or more axes that is neither quantized nor named in the plan with the
reason why it is float. SQNR compares the raw outputs with those of the float model as it was before the first change;
with random weights it is a check, not an accuracy. Times are of one processor core.

Where the SQNR is below 20 dB, the remark tells what it is with random noise instead of rounding, as strong as what
rounding does to each tensor; with every quantizer off (what folding and other edits cost); with weights or activations
alone; and which tensor makes most of the noise: the SQNR of the outputs if it alone is quantized, that of the tensor
itself, its largest value in root mean squares, and where calls of a shared layer, which have one grid, differ in size,
how much. Where random noise does the same, the net with its random weights is that sensitive: products of two
activations add their relative errors, and what normalizes a small difference of large values enlarges them.
{older}

The raw outputs of a detector are those of mmdet's `mode='tensor'`. For some detectors that mode computes less than
prediction does: it leaves out the point head of PointRend, and hands the initial queries to every stage of Sparse R-CNN
and QueryInst, whose later stages then seem to read no data. Such layers do not count here, although prediction uses
them. CLRNet fails because that mode of it reads a dict of images, while its own data preprocessor makes one tensor.

'''


PARTS = (('Classification backbones of mmpretrain', 'mmpretrain', 'Backbone'),
         ('Detector families of mmdet', 'mmdet', 'Family'),
         ('Classifier families of torchvision', 'torchvision', 'Family'),
         ('Classifier families of timm', 'timm', 'Family'))


def page(state: dict) -> str:
    """The whole page from the results so far."""
    return HEADER.replace('{older}', older(state)) + '\n'.join(
        f'## {title}\n\n' + table(state[scope], first) for title, scope, first in PARTS if state.get(scope))


def older(state: dict) -> str:
    """A paragraph on rows of before parameters that no plan names were looked for; '' without such rows."""
    found = {scope: sorted(n for n, row in state.get(scope, {}).items() if 'unnamed' not in row)
             for _, scope, _ in PARTS}
    parts = [f'all rows of {scope}' if len(names) == len(state[scope]) else f'of {scope} {", ".join(names)}'
             for scope, names in found.items() if names]
    text = (f'Of an older measurement are {"; ".join(parts)}: its reference was the float mode of the quantized model, '
            'and it did not look for parameters that no plan names. `--again all` measures them anew.')
    return '\n' + textwrap.fill(text, 120, break_on_hyphens=False) + '\n' if parts else ''


def export_page(state: dict) -> str:
    """The page of exports from the results so far."""
    return export_coverage.HEADER + '\n'.join(
        f'## {title}\n\n' + export_coverage.table(state[scope], first) for title, scope, first in PARTS
        if any(row.get('export') for row in state.get(scope, {}).values()))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/en/notes/zoo_coverage.md', help='markdown file to write')
    parser.add_argument('--state', default='docs/en/notes/zoo_coverage.json', help='results so far; a run adds to them')
    parser.add_argument('--export', action='store_true',
                        help='export what is measured, too')
    parser.add_argument('--export-out', default='docs/en/notes/zoo_export.md', help='its markdown file')
    parser.add_argument('--limit', type=int, default=120, help='seconds of processor time a model; default 120')
    parser.add_argument('--only', help='regular expression: measure only these names')
    parser.add_argument('--source', '--scope', dest='scope', choices=ZOOS,
                        help='measure only this zoo; timm is an optional package')
    parser.add_argument('--again', choices=['failed', 'all'], help='forget failed results, or all, of what is chosen')
    parser.add_argument('--list', action='store_true', help='log the chosen configs and stop')
    return parser.parse_args()


def read_state(path: str) -> dict:
    """Results so far, by zoo and name."""
    state = read_json(path) if osp.isfile(path) else {}
    return {scope: state.get(scope, {}) for scope in ZOOS}


def coverage_of(row: dict) -> Coverage:
    """The result that a row of the JSON file holds, which has null for an SQNR that is none."""
    return Coverage(**{k: v for k, v in row.items() if k not in ('config', 'export') and v is not None})


def main() -> None:
    """Measure what is missing, write the table."""
    args = parse_args()
    logger = MMLogger.get_instance('zoo_coverage')
    state = read_state(args.state)
    zoos = (('mmpretrain', classification_models, (64, 224)), ('mmdet', detection_models, (SIDE, )),
            ('torchvision', torchvision_models, (64, 224)), ('timm', timm_models, (TIMM_SIDE, 224, 256)))
    for scope, choose, sides in zoos:
        if args.scope not in (None, scope):
            continue
        if args.scope is None and importlib.util.find_spec(scope) is None:
            logger.warning(f'{scope} is not installed; its zoo is left out')
            continue
        models = {n: m for n, m in choose().items() if not args.only or re.search(args.only, n)}
        if args.list:
            logger.info('\n'.join(f'{name}: {path}' for name, choices in models.items() for path, _ in choices[:1]))
            continue
        rows = state[scope]
        for name in set(models) & set(rows) if args.again else ():
            if args.export:
                if args.again == 'all' or export_coverage.exported_of(rows[name].get('export', {})).failures():
                    rows[name].pop('export', None)
            elif args.again == 'all' or not coverage_of(rows[name]).ok:
                del rows[name]

        def save(name, rows=rows):
            write_json(args.state, state, sort_keys=True)
            found = coverage_of(rows[name])
            logger.info(f'{name}: {found.quantized} of {found.layers} layers, {found.seconds:.1f} s {found.reason}')

        def save_export(name, rows=rows):
            write_json(args.state, state, sort_keys=True)
            found = export_coverage.exported_of(rows[name]['export'])
            logger.info(f'{name}: {found.files} files, {found.seconds:.1f} s {"; ".join(found.failures())}')

        measure(scope, models, sides, args.limit, rows, save)
        if args.export:
            measure_exports(scope, models, sides, args.limit, rows, save_export)
    if not args.list:
        write_text(args.out, page(state))
        if args.export:
            write_text(args.export_out, export_page(state))


if __name__ == '__main__':
    run_as_script(main)
