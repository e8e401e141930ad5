"""Configs with one mistake each: success, or one paragraph that names the key; never a traceback, hang or default."""
import copy
import random
import re

import pytest
from mmengine.config import Config
from tools_for_tests import CONFIG, run_tool

OBSERVER = "dict(type='mmquant.MinMaxObserver')"
# A net and a run of half a second.
BASE = f'''
_base_ = '{CONFIG}'
model = dict(architecture=dict(backbone=dict(stem_channels=4, base_channels=4), head=dict(in_channels=32)),
             float_checkpoint='random')
train_cfg = dict(dataloader=dict(batch_size=8, dataset=dict(indices=16)), chunk_size=16, steps=[
    dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
    dict(type='mmquant.InitWeightRange', observer={OBSERVER}),
    dict(type='mmquant.InitActivationRange', observer={OBSERVER}, num_images=8, name='nearest'),
    dict(type='mmquant.Reconstruction', unit='stage', num_iters=2, batch_size=4, rounding=dict(type='mmquant.AdaRound'),
         train=dict(rounding=dict(lr=1e-3, schedule='constant')),
         terms=dict(unit=dict(type='mmquant.UnitLoss', p=2),
                    rounding=dict(type='mmquant.RoundingRegularizer', weight=0.01, beta_end=2, warmup=0.2)),
         hooks=dict(keep_best=dict(type='mmquant.KeepBest', held_out=2, every=0, choose=True))),
    dict(type='mmquant.Reconstruction', quantize=['weights', 'activations'], unit='stage', num_iters=2, batch_size=4,
         inputs=dict(type='mmquant.ElementMix', quant_prob=0.5, inside=True),
         train=dict(activation_scale=dict(lr=4e-4, schedule='cosine', optimizer=dict(type='Adam'), max_bits=4)))])
val_dataloader = dict(dataset=dict(indices=10))
test_dataloader = dict(dataset=dict(indices=10))
default_hooks = dict(logger=dict(interval=100))
custom_hooks = [dict(type='mmquant.EvaluationHook')]
'''
# What is mutated: everything of ours, and the parts of mmengine, mmpretrain and PyTorch that a run reads.
PARTS = ('model', 'train_cfg', 'val_dataloader', 'val_evaluator', 'data_preprocessor', 'custom_hooks')
VALUES = [None, -1, 0, 3, 1e9, float('nan'), 'text', '', True, [], [1, 'a'], {}, dict(typ='x'), (2, )]


def paths(node, prefix=()):
    """All paths to values below a config node."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in children:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def parent_of(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


def misspelt(word: str, dice: random.Random) -> str:
    at = dice.randrange(len(word))
    return word[:at] + dice.choice('qxz') + word[at + 1:] if dice.random() < 0.5 else word[:at] + word[at + 1:] or 'q'


def mutate(tree: dict, dice: random.Random) -> tuple[tuple, str]:
    """One change in place; returns its path and what it was."""
    path = dice.choice([p for p in paths({k: tree[k] for k in PARTS}) if len(p) > 1])
    parent, key = parent_of(tree, path), path[-1]
    if isinstance(parent, tuple):
        grand = parent_of(tree, path[:-1])
        grand[path[-2]] = parent = list(parent)
    kind = dice.choice(('value', 'value', 'missing', 'misspelt'))
    if isinstance(parent, dict) and kind == 'missing':
        del parent[key]
        return path, 'missing'
    if isinstance(parent, dict) and kind == 'misspelt':
        new = misspelt(str(key), dice)
        parent[new] = parent.pop(key)
        return (*path[:-1], new), f'misspelt {key}'
    value = parent[key]
    if isinstance(value, str) and dice.random() < 0.4 and value:
        parent[key] = misspelt(value, dice)
    else:
        # no run of a thousand million steps: that would be what the user asked for
        parent[key] = dice.choice([v for v in VALUES if not (v == 1e9 and key in ('num_iters', 'depth'))])
    return path, f'{value!r} -> {parent[key]!r}'


def outcome(tree: dict, folder) -> str | None:
    """Text of the error, None after success; any other exception is a failure of the test."""
    config = folder / 'config.py'
    Config(tree).dump(str(config))
    config.write_text(re.sub(r'(?<=[ =:\[(])nan(?=[,)\]\n])', "float('nan')", config.read_text()))
    try:
        run_tool('ptq.py', config, '--work-dir', folder / 'run', '--no-report')
    except SystemExit as stop:
        return str(stop)
    return None


def check(seed: int, base: dict, folder) -> tuple[str, str | None]:
    tree, dice = copy.deepcopy(base), random.Random(seed)
    path, what = mutate(tree, dice)
    text = outcome(tree, folder)
    label = f'{seed}: {".".join(map(str, path))} {what}'
    if text is not None:
        assert 'Traceback' not in text and re.match(r'\w+: ', text), f'{label}\n{text}'
        body = text.removesuffix('\n(set MMQUANT_TRACEBACK=1 to see where it came from)')
        assert len(body.strip().splitlines()) == 1 and len(body) < 1500, f'{label}\n{text}'
        parts = [p for p in path if isinstance(p, str) and p not in ('model', 'train_cfg')]
        names = [*parts, what.removeprefix('misspelt '), *what.split("'")[1::2]]
        assert any(n and n in body for n in names), f'{label}\n{text}'
    return label, text


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp('base')
    (folder / 'config.py').write_text(BASE)
    tree = Config.fromfile(str(folder / 'config.py')).to_dict()
    assert outcome(copy.deepcopy(tree), folder) is None
    return tree


@pytest.mark.parametrize('seed', range(12))
def test_twelve_mutated_configs(seed, base, tmp_path):
    check(seed, base, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(1000, 1300))
def test_three_hundred_mutated_configs(seed, base, tmp_path):
    check(seed, base, tmp_path)
