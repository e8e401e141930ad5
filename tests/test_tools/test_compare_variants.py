"""Variants on the command line: measured once, told when something does not fit."""
import json

import pytest
from tools_for_tests import ROOT, run_tool

CONFIG = str(ROOT / 'configs/repapq/mobileone_w8a8_digits.py')
VARIANTS = '''
nearest = dict(joint=None, affines=None, folded=None)
variants = {'Nearest': dict(steps=nearest),
            'One scale a tensor': dict(steps=nearest, quantizer=dict(weight=dict(granularity='tensor')))}
'''
DATA = ('train_cfg.dataloader.dataset.indices=32', 'val_dataloader.dataset.indices=100',
        'test_dataloader.dataset.indices=100')


def compare(folder, *args):
    (folder / 'v.py').write_text(VARIANTS)
    run_tool('analysis_tools/compare_variants.py', CONFIG, folder / 'v.py', '--work-dir', folder, *args)


def test_every_seed_is_measured_once(tmp_path, capfd):
    compare(tmp_path, '--seed', 1, '--cfg-options', *DATA)
    path = tmp_path / 'variants.json'
    known = json.loads(path.read_text())
    values = {n: row['seeds']['1']['accuracy/top1'] for n, row in known['variants'].items()}
    assert values['Nearest'] > 80 > 30 > values['One scale a tensor'] and known['data']['images'] == 100
    known['variants']['Nearest']['seeds']['1']['accuracy/top1'] = 12.25
    path.write_text(json.dumps(known))
    compare(tmp_path, '--seeds', 0, 1, '--only', 'Nearest', '--cfg-options', *DATA)
    after = json.loads(path.read_text())['variants']
    assert after['Nearest']['seeds'].keys() == {'0', '1'} and after['One scale a tensor']['seeds'].keys() == {'1'}
    assert '12.25' in capfd.readouterr().out  # was not measured again


@pytest.mark.parametrize('args, text', [(('--only', 'Nearst'), "unknown key 'Nearst'; did you mean 'Nearest'"),
                                        (('--publish', '--cfg-options', *DATA), 'leave out --cfg-options')])
def test_mistakes(tmp_path, args, text):
    with pytest.raises(SystemExit, match=text):
        compare(tmp_path, *args)


def test_no_variants(tmp_path):
    with pytest.raises(SystemExit, match='has no variants'):
        run_tool('analysis_tools/compare_variants.py', CONFIG, CONFIG, '--work-dir', tmp_path)
