"""Variants of a config: changed steps, kept figures, and the table made from them."""
import json

import pytest
from mmengine.config import Config
from model_zoo.results import write_json
from model_zoo.tables import Entry, variants_table
from model_zoo.variants import apply_variant, measurement

from mmquant.utils.building import ConfigError


def config():
    steps = dict(fold=dict(type='mmquant.Fold'), ranges=dict(type='mmquant.Range', observer=dict(p=1, size=8)),
                 fit=dict(type='mmquant.Fit', lr=dict(a=1, b=2)))
    return Config(dict(train_cfg=dict(steps=steps), model=dict(quantizer=dict(weight=dict(bits=8, kind='x')))))


def test_steps_are_changed_left_out_and_replaced():
    cfg = config()
    changes = dict(ranges=dict(observer=dict(p=2)), fit=dict(lr=dict(a=None)), fold=None,
                   bias=dict(type='mmquant.Bias', before='fit'))
    changed = apply_variant(cfg, dict(steps=changes, quantizer=dict(weight=dict(bits=4))))
    assert list(changed.train_cfg.steps) == ['ranges', 'bias', 'fit']
    assert changed.train_cfg.steps.ranges.observer == dict(p=2, size=8) and changed.train_cfg.steps.fit.lr == dict(b=2)
    assert changed.model.quantizer.weight == dict(bits=4, kind='x')
    assert len(cfg.train_cfg.steps) == 3 and cfg.train_cfg.steps.fit.lr == dict(a=1, b=2)
    other = dict(algorithm=dict(other=dict(type='Other')))
    assert apply_variant(cfg, other).train_cfg.steps == dict(other=dict(type='Other'))


@pytest.mark.parametrize('variant, text', [(dict(steps=dict(rnges={})), "'rnges' to change; did you mean 'ranges'"),
                                           (dict(step={}), "unknown key 'step'; did you mean 'steps'")])
def test_mistakes(variant, text):
    with pytest.raises(ConfigError, match=text):
        apply_variant(config(), variant)


def test_figures_of_another_variant_or_other_data_are_dropped():
    data = dict(name='x', images=5)
    known = measurement(None, 'A', dict(steps={}), 'f.py', data)
    known['variants']['A']['seeds']['0'] = {'m': 1.0}
    assert measurement(json.loads(json.dumps(known)), 'A', dict(steps={}), 'f.py', data) == known
    assert measurement(known, 'A', dict(quantizer={}), 'f.py', data)['variants']['A']['seeds'] == {}
    known['variants']['A']['seeds']['0'] = {'m': 1.0}
    assert measurement(known, 'B', {}, 'f.py', data)['variants'].keys() == {'A', 'B'}
    other = measurement(known, 'A', dict(steps={}), 'f.py', dict(data, images=6))
    assert other['variants']['A']['seeds'] == {} and other['data']['images'] == 6


def entry(folder, bits, *records):
    return Entry(str(folder / 'configs' / 'alg' / f'net_w{bits}a{bits}_small.py'), 'Net', 0, 'small',
                 'Image Classification', 'Small set', bits, bits, None, None, records, None)


def test_table(tmp_path):
    (tmp_path / 'configs' / 'alg').mkdir(parents=True)
    (tmp_path / 'configs' / 'v.py').write_text('variants = dict(B=dict(steps=dict(F=None)), A=dict())')
    seeds = {'0': {'accuracy/top1': 70.0}, '1': {'accuracy/top1': 72.0}}
    rows = dict(A=dict(changes={}, seeds=seeds), B=dict(changes=dict(steps=dict(F=1)), seeds=seeds))
    known = dict(source='configs/v.py', data=dict(name='Small set', images=9), variants=rows)
    write_json(str(tmp_path / 'records' / 'alg' / 'net_w8a8_small' / 'variants.json'), known)
    text = variants_table('net_small', [entry(tmp_path, 8), entry(tmp_path, 4)])
    assert '| Variant | W8A8 |' in text and '9 images' in text
    assert text.index('| B | - |') < text.index('| A | 71.00 ± 1.41 |')  # order of the file; B was another one then
    own = variants_table('net_small', [entry(tmp_path, 8, dict(metrics={'accuracy/top1': 65.5}))])
    assert '| A | 65.50 |' in own and '±' not in own  # nothing was changed: the config's own record
    both = variants_table('net_small', [entry(tmp_path, 8)], ['accuracy/top1', 'accuracy/top1'])
    assert '| A | 71.00 ± 1.41 / 71.00 ± 1.41 |' in both and '\ntop1 / top1 on Small set' in both
    known['variants']['A']['seeds'] = {'0': {'accuracy/top1': None}, '1': {'accuracy/top1': 72.0}}  # it was NaN
    write_json(str(tmp_path / 'records' / 'alg' / 'net_w8a8_small' / 'variants.json'), known)
    assert '| A | - |' in variants_table('net_small', [entry(tmp_path, 8)])
    assert '| A | nothing found |' in variants_table('net_small', [entry(tmp_path, 8, dict(metrics={}))])
    assert 'Not measured yet' in variants_table('net_small', [entry(tmp_path, 4)])
    with pytest.raises(ConfigError, match="no config of this folder belongs to it; did you mean 'net_small'"):
        variants_table('net_smal', [entry(tmp_path, 8)])


def test_columns_of_several_variants_files(tmp_path):
    """Each column shows what its own file names; a name of both files is one row."""
    (tmp_path / 'configs' / 'alg').mkdir(parents=True)
    (tmp_path / 'configs' / 'v.py').write_text('variants = dict(N=dict(steps=dict(F=None)), A=dict())')
    (tmp_path / 'configs' / 'u.py').write_text('variants = dict(N=dict(steps=dict(G=None)), C=dict(steps={}))')
    for bits, source, step in ((8, 'v', 'F'), (4, 'u', 'G')):
        rows = dict(N=dict(changes=dict(steps={step: None}), seeds={'0': {'accuracy/top1': 10.0 * bits}}))
        write_json(str(tmp_path / 'records' / 'alg' / f'net_w{bits}a{bits}_small' / 'variants.json'),
                   dict(source=f'configs/{source}.py', data=dict(name='Small set', images=9), variants=rows))
    text = variants_table('net_small', [entry(tmp_path, 8), entry(tmp_path, 4)])
    assert '| N | 80.00 | 40.00 |\n| A | - | - |\n| C | - | - |' in text
