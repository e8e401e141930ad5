"""tools/test.py writes a results record, and publishes it where the run was the config's own."""
import json
import shutil

import pytest
import torch
import yaml
from models_for_tests import change_quantized
from tools_for_tests import CONFIG, quantized_of, results_of, run_tool

TEXT = f'''
_base_ = '{CONFIG}'
observer = dict(type='mmquant.MinMaxObserver')
train_cfg = dict(dataloader=dict(dataset=dict(indices=32)), steps=[
    dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
    dict(type='mmquant.InitWeightRange', observer=observer),
    dict(type='mmquant.InitActivationRange', observer=observer, name='nearest')])
val_dataloader = dict(dataset=dict(indices=100))
test_dataloader = dict(dataset=dict(indices=100))
'''
ZOO = 'Models: {net: Net}\nData: {digits: {Name: Digits, Task: Image Classification}}\n'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Config in a folder of its own, and the work dir of its run with seed 4."""
    root = tmp_path_factory.mktemp('zoo')
    folder = root / 'configs' / 'x'
    folder.mkdir(parents=True)
    (root / 'configs/zoo.yml').write_text(ZOO)
    (folder / 'README.md').write_text('<!-- [RESULTS] digits -->\n<!-- [RESULTS END] -->\n')
    (folder / 'metafile.yml').write_text('Collections:\n- Name: X\n')
    config = folder / 'net_w2a4_digits.py'
    config.write_text(TEXT)
    run_tool('ptq.py', config, '--work-dir', root / 'run', '--seed', 4, '--no-report')
    return config, root / 'run'


def evaluate(published, tmp_path, *args):
    config, run = published
    run_tool('test.py', config, run / 'quantized.pth', '--work-dir', tmp_path, *args)


def test_record(published, tmp_path):
    evaluate(published, tmp_path)
    text = (tmp_path / 'record_seed4.json').read_text()
    record, stages = json.loads(text), {s['name']: s['metrics'] for s in results_of(published[1])['stages']}
    assert record['metrics'] == stages['final'] == record['nearest'] and record['float'] == stages['float']
    digest = record['data'].pop('list_sha256')  # of the evaluated images
    assert len(digest) == 64 and record['data'] == dict(name='Digits', type='DigitsDataset', images=100)
    assert record['config'] == 'configs/x/net_w2a4_digits.py' and record['calibration']['images'] == 32
    assert record['cost']['params'] == 700266 and 0 < record['minutes'] < 1 and record['peak_memory_bytes'] > 1e7
    assert record['versions']['quantized']['torch'] == torch.__version__ and record['device']
    assert len(record['calibration']['list_sha256']) == 64 and str(published[1].parent) not in text
    quantized_of(published[1])


def test_publish(published, tmp_path):
    evaluate(published, tmp_path, '--update-results')
    folder = published[0].parent
    record = json.loads((folder.parents[1] / 'records/x/net_w2a4_digits/seed4.json').read_text())
    assert record == json.loads((tmp_path / 'record_seed4.json').read_text())
    top1 = f'{record["metrics"]["accuracy/top1"]:.2f}'
    row = (folder / 'README.md').read_text().splitlines()[4]
    assert row.startswith(f'| Net | Digits | 0.70 | 0.035 | 2/4 | 99.00 | {top1} | {top1} |')
    models = yaml.safe_load((folder / 'metafile.yml').read_text())['Models']
    assert models[0]['Results'][0]['Metrics']['Top 1 Accuracy'] == float(top1)


@pytest.mark.parametrize('args, text', [
    (['--amp'], 'published numbers are measured without --tta and --amp'),
    (['--cfg-options', 'test_dataloader.dataset.indices=50'], '--cfg-options change test_dataloader.dataset'),
    (['--cfg-options', 'data_preprocessor.std="[1,1,1]"'], '--cfg-options change data_preprocessor'),
])
def test_another_evaluation_is_not_published(published, tmp_path, args, text):
    with pytest.raises(SystemExit, match=text):
        evaluate(published, tmp_path, '--update-results', *args)


def test_another_run_is_not_published(published, tmp_path):
    config, run = published
    config.write_text(TEXT.replace('indices=32', 'indices=16'))
    try:
        with pytest.raises(SystemExit, match=r'other settings .*: dataset\.indices: 32 instead of 16'):
            evaluate(published, tmp_path, '--update-results')
    finally:
        config.write_text(TEXT)


def test_older_checkpoint(published, tmp_path):
    config, run = published
    meta = {k: v for k, v in quantized_of(run)['meta'].items() if k != 'cost'}
    shutil.copy(run / 'quantized.pth', tmp_path / 'old.pth')
    change_quantized(tmp_path / 'old.pth', meta=meta)
    run_tool('test.py', config, tmp_path / 'old.pth', '--work-dir', tmp_path, '--out', tmp_path / 'm.json')
    assert (tmp_path / 'm.json').exists() and not list(tmp_path.glob('record*'))
    with pytest.raises(SystemExit, match="meta has no 'cost', which a results record needs"):
        run_tool('test.py', config, tmp_path / 'old.pth', '--work-dir', tmp_path, '--update-results')
