import copy
import hashlib
import json

import pytest
from model_zoo.results import (
    baseline,
    check_publishable,
    make_record,
    other_set,
    read_cost,
    read_records,
    repository_path,
    results_folder,
    spread,
    values_of,
    write_json,
)

from mmquant.utils.building import ConfigError

SETTINGS = dict(steps=[dict(type='a', lr=0.1)], quantizer=dict(weight=dict(bits=2), activation=dict(bits=None)))


@pytest.fixture
def meta():
    stages = [dict(name=n, metrics={'accuracy/top1': v}, seconds=1.0)
              for n, v in (('float', 90.0), ('nearest_weights', 30.0), ('nearest', 20.0))]
    cost = dict(params=10, macs=20, bops=160, size_mb=0.5, float_size_mb=4.0)
    return dict(seed=7, stages=stages, records=[dict(kind='folded', pairs=3)], settings=dict(SETTINGS, seed=7),
                cost=cost, device='some device', versions=dict(torch='2'), seconds=90.0, peak_memory_bytes=5,
                evaluated_images=50, calibration=dict(images=8, list_sha256='ab', dataset=dict(type='D', split='c')))


def test_record(meta, tmp_path):
    path = tmp_path / 'q.pth'
    path.write_bytes(b'abc')
    record = make_record('/home/x/configs/brecq/r_w2a32.py', str(path), meta, {'accuracy/top1': 70.0},
                         dict(name='D', type='T', images=50))
    assert record['config'] == 'configs/brecq/r_w2a32.py' and (record['w_bits'], record['a_bits']) == (2, 32)
    assert record['float'] == {'accuracy/top1': 90.0} and record['nearest'] == {'accuracy/top1': 20.0}
    assert record['metrics'] == {'accuracy/top1': 70.0} and record['minutes'] == 1.5 and record['seed'] == 7
    assert record['checkpoint'] == dict(sha256=hashlib.sha256(b'abc').hexdigest(), bytes=3)
    assert record['cost']['bops'] == 160 and record['versions']['evaluated']['torch']
    assert str(tmp_path) not in json.dumps(record) and '/home/x' not in json.dumps(record)
    del meta['cost']
    with pytest.raises(ConfigError, match="q.pth: its meta has no 'cost', which a results record needs; .*again with"):
        make_record('c.py', str(path), meta, {}, {})


def test_a_record_never_mixes_two_sets(meta, tmp_path):
    """Baselines are those of the evaluated images, or there are none."""
    (tmp_path / 'q.pth').write_bytes(b'abc')

    def made(**data):
        return make_record('c.py', str(tmp_path / 'q.pth'), meta, {'accuracy/top1': 70.0}, dict(images=50, **data))

    meta['evaluated_list_sha256'] = 'aa'
    assert made(list_sha256='aa')['nearest'] == {'accuracy/top1': 20.0}
    other = made(list_sha256='bb')
    assert other['float'] is None and other['nearest'] is None and other['metrics'] == {'accuracy/top1': 70.0}
    assert 'on 50 images, this evaluation on 50 others' in other_set(meta, dict(images=50, list_sha256='bb'))
    with pytest.raises(ConfigError, match='--update-results: the run took its baselines on 50 images'):
        check_publishable(meta, dict(SETTINGS, dataset=dict(type='D', split='c')), dict(images=50, list_sha256='bb'))
    assert made(list_sha256='aa', **{})['float'] and other_set(meta, dict(images=49, list_sha256='aa'))
    del meta['evaluated_list_sha256']  # of an older run: counts alone
    assert made(list_sha256='bb')['float'] == {'accuracy/top1': 90.0}


def test_baseline_of_a_recipe_without_activations(meta):
    assert baseline(meta['stages'][:2], 'nearest', 'nearest_weights') == {'accuracy/top1': 30.0}
    assert baseline(meta['stages'][:1], 'nearest', 'nearest_weights') is None


@pytest.mark.parametrize('path, expected', [
    ('/a/configs/b/configs/brecq/x.py', 'configs/brecq/x.py'), ('configs/lapq/x.py', 'configs/lapq/x.py'),
    ('/a/my_config.py', 'my_config.py')])
def test_repository_path(path, expected):
    assert repository_path(path) == expected


def test_only_the_config_as_it_is_gets_published(meta):
    data, own = dict(images=50), dict(SETTINGS, dataset=dict(type='D', split='c'))
    check_publishable(meta, own, data)
    other = copy.deepcopy(own)
    other['steps'][0]['lr'] = 0.2
    with pytest.raises(ConfigError, match=r'other settings than the config has: steps\.0\.lr: 0\.1 instead of 0\.2'):
        check_publishable(meta, other, data)
    with pytest.raises(ConfigError, match=r'dataset\.split'):
        check_publishable(meta, dict(own, dataset=dict(type='D', split='d')), data)
    with pytest.raises(ConfigError, match='baselines on 50 images, this evaluation on 500; let val_dataloader'):
        check_publishable(meta, own, dict(images=500))
    meta['records'].append(dict(kind='shared_images', count=3))
    with pytest.raises(ConfigError, match='3 calibration images of this run are also evaluation images'):
        check_publishable(meta, own, data)


def test_files(tmp_path):
    config = str(tmp_path / 'configs' / 'x' / 'r_w2a4.py')
    assert results_folder(config) == str(tmp_path / 'records' / 'x' / 'r_w2a4')
    assert read_records(config) == [] and read_cost(config, []) is None
    write_json(results_folder(config) + '/cost.json', dict(params=1))
    assert read_cost(config, []) == dict(params=1)
    for seed in (10, 2):
        write_json(f'{results_folder(config)}/seed{seed}.json', dict(seed=seed, cost=dict(params=seed)))
    records = read_records(config)
    assert [r['seed'] for r in records] == [2, 10] and read_cost(config, records) == dict(params=2)


def test_mean_and_sample_standard_deviation():
    assert spread([]) == '-' and spread([71.204]) == '71.20'
    assert spread([1.0, 2.0, 6.0]) == '3.00 ± 2.65'  # sqrt((4 + 1 + 9) / 2)
    assert spread([0.275, 0.277], 1, 100) == '27.6 ± 0.1'
    records = [dict(metrics=dict(a=1.0)), dict(metrics=dict(a=2.0, b=3.0), float=dict(a=5.0))]
    assert values_of(records, 'a') == [1.0, 2.0] and values_of(records, 'b') == [] == values_of(records, 'a', 'float')
