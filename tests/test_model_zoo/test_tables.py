"""Tables and metafiles from records; the committed ones are what their records give."""
import functools
import json
import re
from pathlib import Path

import modelindex
import pytest
import yaml
from model_zoo.results import write_json
from model_zoo.tables import (
    SUMMARY,
    TABLE,
    TASKS,
    VARIANTS,
    data_name,
    float_config,
    read_zoo,
    split_stem,
    update_folder,
    updated_files,
)
from tools_for_tests import run_tool

from mmquant.algorithms.step_list import listed_steps
from mmquant.apis.config import calibration_config, load_config
from mmquant.apis.prepare import model_cost_of
from mmquant.utils.building import ConfigError, differing_keys, plain

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
FOLDERS = sorted(p.parent for p in CONFIGS.glob('*/README.md'))

ZOO = '''
Models: {a: Net A, b: Net B, a_small: Little A}
Data:
  imagenet: {Name: Big set, Task: Image Classification}
  small: {Name: Small set, Task: Image Classification}
  boxes: {Name: Box set, Task: Object Detection}
'''
README = '''# X

<!-- [SUMMARY] -->
old
<!-- [SUMMARY END] -->
Prose, 12.
<!-- [RESULTS] imagenet -->
old
<!-- [RESULTS END] -->
More.
<!-- [RESULTS] small -->
<!-- [RESULTS END] -->
<!-- [RESULTS] boxes -->
<!-- [RESULTS END] -->
End.
'''
CONFIG = '''
_base_ = ['../float/{}.py']
model = dict(quantizer=dict(weight=dict(bits={}), activation=dict(bits={})), float_checkpoint='{}')
train_cfg = dict(dataloader=dict(dataset=dict(num_samples=64)))
'''


def record(seed, top1, nearest=40.0, images=500, **more):
    metrics = {'accuracy/top1': top1, 'accuracy/top5': top1 + 5}
    return dict(dict(seed=seed, metrics=metrics, float={'accuracy/top1': 90.0, 'accuracy/top5': 99.0},
                     nearest={'accuracy/top1': nearest, 'accuracy/top5': 80.0}, data=dict(images=images), w_bits=2,
                     a_bits=4, minutes=1.5, device='Chip', calibration=dict(images=64),
                     cost=dict(params=1234567, macs=2e9, bops=16e9, size_mb=0.456, float_size_mb=4.9)), **more)


@pytest.fixture
def folder(tmp_path):
    """A zoo with four configs, one measured with three seeds, one detector measured once."""
    (tmp_path / 'configs' / 'float').mkdir(parents=True)
    folder = tmp_path / 'configs' / 'x'
    folder.mkdir()
    (folder.parent / 'zoo.yml').write_text(ZOO)
    for name in 'ab':
        (folder.parent / 'float' / f'{name}.py').write_text('')
    for stem, args in dict(a_w4a4=('a', 4, 4, 'https://h/w.pth'), b_w2a4=('b', 2, 4, '/disk/w.pth'),
                           a_w2a4_small=('a', 2, 4, 'checkpoints/a.pth'), a_w4a32_tensor_small=('a', 4, None, 'random'),
                           b_w4a4_boxes=('b', 4, 4, 'random')).items():
        (folder / f'{stem}.py').write_text(CONFIG.format(*args))
    (folder / 'README.md').write_text(README)
    (folder / 'metafile.yml').write_text('Collections:\n- Name: X\n  README: README.md\n# [MODELS] Below: made by '
                                         'tools/misc/update_readmes.py.\nModels: []\n')
    for seed, top1 in enumerate((70.0, 71.0, 75.0)):
        write_json(str(tmp_path / f'records/x/a_w2a4_small/seed{seed}.json'), record(seed, top1, 40.0 + seed))
    write_json(str(tmp_path / 'records/x/a_w4a4/cost.json'), dict(params=5e6, macs=1e8, bops=1, size_mb=2.0))
    boxes = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.4}
    better = {'coco/bbox_mAP': 0.275, 'coco/bbox_mAP_50': 0.42}
    write_json(str(tmp_path / 'records/x/b_w4a4_boxes/seed0.json'),
               record(0, 0, images=328, metrics=boxes, float=better, nearest=None))
    return folder


def rows(text):
    """First cell of a row and its bits -> cells."""
    cells = [[c.strip() for c in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| ')]
    return {(c[0], c[4]): c for c in cells}


def test_tables(folder):
    update_folder(str(folder))
    text = (folder / 'README.md').read_text()
    table = rows(text)
    assert table['Little A', '2/4'] == [
        'Little A', 'Small set', '1.23', '2.000', '2/4', '90.00', '41.00 ± 1.00', '72.00 ± 2.65', '77.00 ± 2.65',
        '-18.00', '0.46', '1.5', '3', '[config](./a_w2a4_small.py)', '[float](../../checkpoints/a.pth)']
    assert '\n- Net A (5.00 M parameters, 0.100 GFLOPs, [float](https://h/w.pth)): [W4A4](./a_w4a4.py)\n' in text
    assert '\n- Net B: [W2A4](./b_w2a4.py)\n' in text  # no path of a machine
    assert '\n- Little A, tensor: [W4A32](./a_w4a32_tensor_small.py)\n' in text
    assert ('Net A', '4/4') not in table and ('Little A, tensor', '4/32') not in table
    summary = [[c.strip() for c in line.strip('|').split('|')] for line in SUMMARY.search(text)[0].splitlines()
               if line.startswith('| ')]
    assert summary[0] == ['Model', 'Params(M)', 'Flops(G)', 'Top-1 (%)', 'Top-5 (%)', 'Config', 'Download']
    assert summary[2:] == [['Little A, W2A4, Small set', '1.23', '2.000', '72.00 ± 2.65', '77.00 ± 2.65',
                            '[config](./a_w2a4_small.py)', '[float](../../checkpoints/a.pth)']]
    assert table['Net B', '4/4'][5:10] == ['27.50', '-', '25.00', '40.00', '-2.50']
    assert 'Float box AP' in text and 'box AP (%)' in text
    assert 'Measured on 500 images; ± is the sample standard deviation over seeds. Times on Chip' in text
    assert 'old' not in text and text.startswith('# X\n\n<!-- [S') and text.endswith('End.\n')
    update_folder(str(folder))
    assert (folder / 'README.md').read_text() == text


def test_one_float_figure_a_table_or_a_note(folder, tmp_path):
    """Records of two machines: both figures, marked, with the machines below; one of another model is as it was."""
    readme, seed2 = folder / 'README.md', tmp_path / 'records/x/a_w2a4_small/seed2.json'
    update_folder(str(folder))
    assert '†' not in readme.read_text()
    write_json(str(seed2), record(2, 75.0, 42.0, float={'accuracy/top1': 89.4}, device='Other'))
    for stem, top1, device in (('a_w4a32_tensor_small', 89.4, 'Chip'), ('b_w2a4', 89.0, 'Chip')):
        write_json(str(tmp_path / f'records/x/{stem}/seed0.json'),
                   record(0, 80.0, float={'accuracy/top1': top1}, device=device, w_bits=4, a_bits=32,
                          versions=dict(quantized=dict(torch=f'2.{top1:.0f}'))))
    update_folder(str(folder))
    text = readme.read_text()
    table = rows(text)
    assert [table['Little A', '2/4'][i] for i in (5, 9)] == ['89.40 / 90.00 †', '-17.80']
    assert [table['Little A, tensor', '4/32'][i] for i in (5, 9)] == ['89.40 †', '-9.40']
    assert table['Net B', '2/4'][5] == '89.00'
    assert table['Little A', '2/4'][7] == '72.00 ± 2.65'
    assert re.findall('^†.*', text, re.M) == [
        '† Little A, Top-1 (%) of the float model: 89.40 on Chip with torch 2.89, Other and 90.00 on Chip with an '
        "unknown torch. The change of a row is against its own run's; compare rows with different ones by their "
        'change.']


def test_metafile(folder):
    update_folder(str(folder))
    data = yaml.safe_load((folder / 'metafile.yml').read_text())
    models = {m['Name']: m for m in data['Models']}
    assert list(models) == ['x_a_w4a4', 'x_b_w2a4', 'x_a_w2a4_small', 'x_a_w4a32_tensor_small', 'x_b_w4a4_boxes']
    small = models['x_a_w2a4_small']
    assert small['In Collection'] == 'X' and small['Config'] == 'configs/x/a_w2a4_small.py'
    assert small['Metadata']['Parameters'] == 1234567 and small['Metadata']['Calibration Images'] == 64
    assert small['Metadata']['Float Model'] == dict(Name='a', Config='configs/float/a.py', Weights='checkpoints/a.pth')
    assert small['Results'] == [{'Task': 'Image Classification', 'Dataset': 'Small set', 'Metrics': {
        'Top 1 Accuracy': 72.0, 'Float Top 1 Accuracy': 90.0, 'Nearest Top 1 Accuracy': 41.0, 'Top 5 Accuracy': 77.0,
        'Float Top 5 Accuracy': 99.0, 'Nearest Top 5 Accuracy': 80.0, 'Seeds': 3}}]
    assert models['x_b_w4a4_boxes']['Results'][0]['Metrics'] == {
        'box AP': 25.0, 'Float box AP': 27.5, 'AP50': 40.0, 'Float AP50': 42.0, 'Seeds': 1}
    assert 'Results' not in models['x_a_w4a4'] and 'Weights' not in models['x_b_w2a4']['Metadata']['Float Model']


def test_errors(folder, tmp_path):
    other = tmp_path / 'records/x/a_w2a4_small/seed3.json'
    write_json(str(other), record(3, 70.0, images=100))
    with pytest.raises(ConfigError, match=r'records of .*a_w2a4_small\.py differ in data: .*Measure all seeds again'):
        updated_files(str(folder))
    other.unlink()
    readme = folder / 'README.md'
    readme.write_text(README.replace('[RESULTS] small', '[RESULTS] smal'))
    with pytest.raises(ConfigError, match=r'has no table for a_w.*_small: add the lines "<!-- \[RESULTS\] small -->"'):
        updated_files(str(folder))
    readme.write_text(README + '<!-- [RESULTS] big -->\n<!-- [RESULTS END] -->\n')
    with pytest.raises(ConfigError, match="has a table of 'big', but no config there is measured on it"):
        updated_files(str(folder))
    (folder.parent / 'zoo.yml').write_text(ZOO.replace('Object Detection', 'Object Detecton'))
    with pytest.raises(ConfigError, match=r"Data\.boxes\.Task is 'Object Detecton'; did you mean 'Object Detection'\?"):
        updated_files(str(folder))


def test_names():
    keys = ('imagenet', 'digits', 'cifar10')
    assert split_stem('resnet18_w2a4', keys) == ('resnet18', '', 'imagenet')
    assert split_stem('mobilenet-v2_w4a4_per-tensor_slow_digits', keys) == ('mobilenet-v2', 'per-tensor slow', 'digits')
    assert data_name(str(CONFIGS / 'brecq/resnet18_w2a4_digits.py')) == 'Digits (scikit-learn)'
    assert data_name('/no/zoo/x.py') is None
    assert float_config(str(CONFIGS / 'brecq/resnet18_w2a4.py')) == 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    assert float_config(str(CONFIGS / 'brecq/resnet18_w2a4_digits.py')) == 'configs/float/resnet18_digits.py'


def test_float_config_through_a_quantized_base(tmp_path):
    (tmp_path / 'a.py').write_text("_base_ = './b.py'\n")
    (tmp_path / 'b.py').write_text("_base_ = ['mmdet::y.py', './c.py']\nx = 1\n")
    assert float_config(str(tmp_path / 'a.py')) == 'mmdet::y.py'


# ---- what is committed ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('folder', FOLDERS, ids=lambda p: p.name)
def test_committed_tables_come_from_committed_records(folder):
    """Every README and metafile is what the generator makes: no number is typed."""
    assert len(SUMMARY.findall((folder / 'README.md').read_text())) == 1  # the first table of every README
    for path, text in updated_files(str(folder)).items():
        assert Path(path).read_text(encoding='utf-8') == text, f'run python tools/misc/update_readmes.py {folder}'


def test_no_number_beside_the_generated_ones():
    """What looks like a measured accuracy outside the markers of a README would have been typed."""
    for folder in FOLDERS:
        text = (folder / 'README.md').read_text(encoding='utf-8')
        for made in (SUMMARY, TABLE, VARIANTS):
            text = made.sub('', text)
        assert not re.findall(r'\b\d\d\.\d+ ?%|\b\d\d\.\d\d\b', text), folder
        assert not re.findall(r'^\|.*\d\d\.\d', text, re.M), folder


def test_committed_records_are_whole():
    load = functools.cache(load_config)
    assert not list(CONFIGS.rglob('*.json'))
    for path in (ROOT / 'records').rglob('*.json'):
        config = CONFIGS / path.parents[1].name / f'{path.parent.name}.py'
        assert config.exists(), f'{path} belongs to no config'
        data = json.loads(path.read_text())
        if path.name == 'cost.json':
            assert set(data) == {'params', 'macs', 'bops', 'size_mb', 'float_size_mb'}
            continue
        known = read_zoo(str(CONFIGS))['Data']
        first = TASKS[known[split_stem(config.stem, known)[2]]['Task']][0]
        assert data['data']['name'] == data_name(str(config))
        if path.name == 'variants.json':
            variants = plain(load(str(ROOT / data['source'])).variants)
            for name, row in data['variants'].items():
                assert row['changes'] == variants[name], f'{path}: {name} was another variant when it was measured'
                assert row['seeds']  # a detector that finds no box at all has no metrics
                assert all(first.key in metrics or metrics == {} for metrics in row['seeds'].values())
        else:
            assert path.name == f'seed{data["seed"]}.json' and data['config'] == str(config.relative_to(ROOT))
            assert first.key in data['metrics']
            cfg = load(str(config))
            settings = dict(steps=listed_steps(cfg.train_cfg.steps), quantizer=cfg.model.quantizer)
            assert not differing_keys({k: data['settings'][k] for k in settings}, plain(settings)), path
        assert not any(p in path.read_text() for p in ('/work', '/tmp', '/home', '/root'))


def test_model_index():
    """modelindex finds nothing wrong, and every config folder is listed."""
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert listed == [f'configs/{p.name}/metafile.yml' for p in FOLDERS]
    names = [m.name for m in index.models]
    configs = [p for f in FOLDERS for p in f.glob('*.py')]
    assert len(names) == len(set(names)) == len(configs)
    for model in index.models:
        path = ROOT / model.config
        assert path.exists() and '_'.join(path.with_suffix('').parts[-2:]) == model.name


def test_script(folder):
    """It writes, then finds nothing to do, then finds what was typed."""
    run_tool('misc/update_readmes.py', folder)
    run_tool('misc/update_readmes.py', folder, '--check')
    readme = folder / 'README.md'
    readme.write_text(readme.read_text().replace('72.00', '78.00'))
    with pytest.raises(SystemExit, match=r'not up to date: .*README\.md; run python tools/misc/update_readmes\.py'):
        run_tool('misc/update_readmes.py', folder, '--check')


@pytest.mark.slow
@pytest.mark.parametrize('config', [p for f in FOLDERS for p in sorted(f.glob('*.py'))],
                         ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_costs_are_those_of_the_configs(config):
    """Parameters, operations and sizes in the tables, computed again; ``-k "digits or cifar10"`` takes small models."""
    cost = ROOT / 'records' / config.parent.name / config.stem / 'cost.json'
    assert cost.exists(), f'run python tools/misc/update_readmes.py --costs {config.parent}'
    again = model_cost_of(calibration_config(load_config(str(config)))).to_dict()
    del again['layers']
    stored = json.loads(cost.read_text())
    assert stored == pytest.approx(again) and stored['macs'] == again['macs'] and stored['bops'] == again['bops']
