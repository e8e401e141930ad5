"""How much of a model is quantized as it is; models of a zoo in processes of their own; the table in the docs."""
import os
import runpy
import time

import pytest
import torch
import torch.nn.functional as F
from export_coverage import Exported, exported_of, measure_export, table
from model_coverage import (
    W8A8,
    Coverage,
    fit_normalization,
    measure_apart,
    measure_coverage,
    spread_weights,
)
from tools_for_tests import ROOT
from torch import nn

from mmquant.algorithms.step import CalibrationContext
from mmquant.models import QuantizedModel

TOOL = runpy.run_path(str(ROOT / 'tools/analysis_tools/zoo_coverage.py'), run_name='zoo_coverage')
SHAPE = (3, 8, 8)


class Mixed(nn.Module):
    """One layer of each kind: called, its weight read, reading no data, for training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.read, self.table, self.auxiliary = nn.Conv2d(4, 4, 1), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = F.conv2d(self.conv(x).relu(), self.read.weight).mean((2, 3)) + self.table(torch.ones(1, 2))
        return self.last(x)


def test_what_counts():
    found = measure_coverage(Mixed, SHAPE)
    assert (found.quantized, found.layers, found.functional, found.constant, found.unreached) == (2, 5, 1, 1, 1)
    assert not found.ok and not found.reason and found.sqnr > 20
    assert set(found.units) == {'layer', 'block', 'stage'}
    whole = measure_coverage(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), SHAPE)
    assert whole.ok and whole.quantized == whole.layers == 2


class Boxes(nn.Module):
    """Boxes that a detector begins with: without its own initial values they would be none."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4)

    def init_weights(self):
        nn.init.constant_(self.table.weight, 0.5)


class NoTable(nn.Module):
    """Its initial values are for training; some such modules ask for layers that they lack (TridentNet)."""

    def init_weights(self):
        raise RuntimeError('no attribute conv2')


@torch.no_grad()
def test_random_weights():
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(conv=nn.Conv2d(50, 40, 3), rpn_reg=nn.Conv2d(50, 40, 3), boxes=Boxes(), other=NoTable(),
                               fc_reg=nn.ModuleList([nn.Linear(100, 80)])))
    spread_weights(model)
    assert float(model['conv'].weight.std()) == pytest.approx((2 / 450)**0.5, rel=0.05)
    assert float(model['rpn_reg'].weight.std()) == pytest.approx(0.01 * (2 / 450)**0.5, rel=0.05)
    assert float(model['fc_reg'][0].weight.std()) == pytest.approx(0.01 * (2 / 100)**0.5, rel=0.05)
    assert model['boxes'].table.weight.unique().tolist() == [0.5]


@torch.no_grad()
def test_batch_normalization_holds_the_size_of_what_it_reads():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.BatchNorm2d(2),
                          nn.BatchNorm2d(2, track_running_stats=False))
    model[0].weight.copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1))
    wrapped = QuantizedModel(model, W8A8, 'random')
    fit_normalization(CalibrationContext(wrapped, [torch.full((1, 1, 2, 2), 2.0)]))
    assert model[1].running_var.tolist() == [50.0, 50.0]  # (6^2 + 8^2) / 2
    assert model[2].running_var.tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
    assert not any(m._forward_pre_hooks for m in model) and model[1].running_mean.tolist() == [0.0, 0.0]


class Refusing(nn.Conv2d):
    """Its own merging of branches is broken, as that of some models."""

    def switch_to_deploy(self):
        raise AttributeError('no branch')


def test_without_merging_where_it_fails():
    assert measure_coverage(lambda: nn.Sequential(Refusing(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), SHAPE).ok


def test_failures_are_rows():
    assert measure_coverage(lambda: nn.Conv2d(4, 4, 3), SHAPE).reason.startswith('RuntimeError: ')
    assert not measure_coverage(lambda: nn.Flatten(), SHAPE).ok


def test_reasons_name_files_but_no_folders():

    def build():
        raise FileNotFoundError("no such file: '/home/someone/site-packages/configs/net.py'")

    reason = measure_coverage(build, SHAPE).reason
    assert reason == "FileNotFoundError: no such file: '.../net.py' (build, test_coverage.py)"


def busy():
    while True:
        pass


@pytest.mark.parametrize('build, limit, text', [
    (lambda: time.sleep(60), 0.05, 'took longer than 0.25 s'),
    (lambda: os._exit(3), 30, 'ended with exit code 3'),
    pytest.param(busy, 1, 'took longer than 1 s of processor time', marks=pytest.mark.slow),
])
def test_a_model_costs_its_own_row_only(build, limit, text):
    started = time.monotonic()
    assert text in measure_apart(build, SHAPE, limit).reason
    assert time.monotonic() - started < 20


def test_measured_apart_is_the_same():
    build = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))  # noqa: E731
    here, apart = measure_coverage(build, SHAPE), measure_apart(build, SHAPE, 60)
    assert apart.ok and apart.sqnr == pytest.approx(here.sqnr, abs=0.1) and apart.units == here.units


def test_a_run_continues_and_takes_the_first_config_that_works(monkeypatch):
    tried, rows, saved = [], {'done': {}}, []

    def measured(build, shape, limit):
        tried.append(shape)
        return Coverage(quantized=1, layers=1, sqnr=30.0, reason='' if shape[1] == 224 else 'too small')

    measure = TOOL['measure']
    monkeypatch.setitem(measure.__globals__, 'measure_apart', measured)
    models = {'done': [('a.py', {})], 'new': [('b.py', {}), ('c.py', {})]}
    measure('mmengine', models, (64, 224), 5, rows, saved.append)
    assert tried == [(3, 64, 64), (3, 224, 224)] and saved == ['new']
    assert rows['new']['config'] == 'b.py' and rows['done'] == {}


def test_table():
    rows = dict(B=dict(vars(Coverage(3, 3, dict(layer=3, block=2, stage=1), 31.26, 2.0)), config='b.py'),
                a=dict(vars(Coverage(reason='ValueError: x | y')), config='a.py'),
                C=dict(vars(Coverage(2, 4, {}, 9.0, functional=1, constant=1)), config='c.py'))
    lines = TOOL['table'](rows, 'Backbone').splitlines()
    assert lines[0] == '1 of 3 (33.3%) are quantized completely.'
    assert lines[4].startswith('| a | `a.py` | 0/0 ') and lines[4].endswith('| ValueError: x / y |')
    assert lines[5] == '| B | `b.py` | 3/3 | 3/2/1 | 31.3 | 2 |  |'
    assert lines[6].endswith(
        '| SQNR below 20 dB; 1 layers read no data; 1 layers are used by function, float |')


class Square(nn.Module):
    """A batch size that went through a float, which torch's exporter takes for a constant."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x).relu().permute(0, 2, 3, 1).reshape(-1, 6, 4)
        x = x.view(int(x.shape[0] / 6.0), 6, 6, -1).permute(0, 3, 1, 2)
        return self.last(x)


def test_an_export_is_compared():
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    found = measure_export(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), SHAPE)
    assert not found.failures() and found.calibrated and (found.files, found.batch, found.share) == (1, 0, 1.0)
    assert found.codes > 100 and found.sqnr > 20 and found.apart > 30
    fixed = measure_export(Square, SHAPE)
    assert not fixed.failures() and (fixed.files, fixed.batch) == (1, 1)


def test_a_failed_export_is_a_row():
    pytest.importorskip('onnxscript')
    found = measure_export(lambda: nn.Conv2d(4, 4, 3), SHAPE)
    assert not found.calibrated and found.reason.startswith('RuntimeError: ') and not found.files


@pytest.mark.parametrize('change, text', [
    (dict(reason='no kernel'), 'no kernel'),
    (dict(codes=9, differing=3, behind=2), 'G1: 1 of 9 codes in front'),
    (dict(worst=0.002), 'G2: an operation alone gives 0.20% other codes'),
    (dict(step=2), 'by up to 2'),
    (dict(apart=19.0), 'outputs 19.0 dB from the simulation'),
    (dict(apart=float('nan')), 'outputs nan dB'),
])
def test_when_an_export_is_not_verified(change, text):
    good = dict(calibrated=True, files=1, codes=9, differing=2, behind=2, worst=0.001, step=1, sqnr=30.0, apart=25.0)
    assert not Exported(**good).failures() and not Exported(**good | dict(sqnr=5.0, apart=6.0)).failures()
    (reason, ) = Exported(**good | change).failures()
    assert text in reason


def test_table_of_exports():
    good = Exported(calibrated=True, files=2, batch=1, share=0.995, ties=0.02, kept=1, sqnr=30.0, apart=41.0, seconds=9)
    rows = dict(B=dict(config='b.py', export=vars(good)), c=dict(config='c.py'),
                a=dict(config='a.py', export=dict(vars(Exported(reason='x | y')), sqnr=None)))
    lines = table(rows, 'Family').splitlines()
    assert lines[0] == '1 of 2 (50.0%) are exported, 1 (50.0%) also verified.'
    assert lines[4] == '| a | `a.py` | - | - | - | - | - | 0 | x / y |'
    assert lines[5] == ('| B | `b.py` | 2 | yes | 99.5% | 30.0 | 41.0 | 9 | 1 layers stay float; fixed batch size 1; '
                        '2.0% of a tensor at ties |')
    assert exported_of(rows['a']['export']).reason == 'x | y'


def test_exports_continue_from_rows(monkeypatch):
    tried, saved = [], []

    def exported(build, shape, limit):
        tried.append(shape[1])
        return Exported(calibrated=shape[1] == 224, reason='no' if shape[1] == 64 else '')

    measure = TOOL['measure_exports']
    monkeypatch.setitem(measure.__globals__, 'export_apart', exported)
    row = dict(vars(Coverage(1, 1)), config='b.py')
    rows = dict(new=dict(row), done=dict(row, export=dict(files=1)), failed=dict(row, layers=0))
    measure('mmengine', {n: [('a.py', {}), ('b.py', {})] for n in (*rows, 'other')}, (64, 224, 256), 5, rows,
            saved.append)
    assert tried == [64, 224] and saved == ['new'] and rows['new']['export']['calibrated']
    assert TOOL['coverage_of'](rows['new']).quantized == 1


def test_few_proposals():
    model = dict(test_cfg=dict(rpn=dict(max_per_img=1000), rcnn=dict(max_per_img=100)))
    few = TOOL['prepared'](model, 'mmdet')
    assert few['test_cfg'] == dict(rpn=dict(max_per_img=20), rcnn=dict(max_per_img=100))
    assert model['test_cfg']['rpn']['max_per_img'] == 1000 and TOOL['prepared']({}, 'mmdet') == {}


def test_what_inference_with_random_weights_needs_not():
    model = dict(teacher_ckpt='https://example.org/teacher.pth', encoder=dict(num_cp=6, layers=2),
                 heads=[dict(roi_layer=dict(type='RoIAlign', use_torchvision=True)), dict(num_classes=3)])
    assert TOOL['prepared'](model, 'mmdet') == dict(
        encoder=dict(num_cp=0, layers=2),
        heads=[dict(roi_layer=dict(type='RoIAlign', use_torchvision=False)), dict(num_classes=3)])
    assert 'teacher_ckpt' in model and model['encoder']['num_cp'] == 6


def test_a_teacher_config_is_read_from_the_package(monkeypatch, tmp_path):
    (tmp_path / 'configs/gfl').mkdir(parents=True)
    (tmp_path / 'configs/gfl/teacher.py').write_text("model = dict(type='GFL')")
    monkeypatch.setitem(TOOL['prepared'].__globals__, 'config_folder', lambda package: str(tmp_path / 'configs'))
    model = dict(type='LD', teacher_config='configs/gfl/teacher.py')
    assert TOOL['prepared'](model, 'mmdet')['teacher_config'].model.type == 'GFL'
    assert model['teacher_config'] == 'configs/gfl/teacher.py'


def test_older_rows_are_named():
    old, new = dict(config='a.py'), dict(config='b.py', unnamed=0)
    text = TOOL['older'](dict(mmpretrain=dict(a=old, b=old), mmdet=dict(y=old, x=old, z=new), timm=dict(t=new)))
    assert text.startswith('\nOf an older measurement are all rows of mmpretrain; of mmdet x, y: its')
    assert TOOL['older'](dict(timm=dict(t=new))) == ''


def test_size_words_order_configs():
    names = ['x-large_8xb16.py', 'x-base_8xb128.py', 'x-tiny.py', 'x_r50.py', 'x_r18.py']
    assert sorted(names, key=TOOL['size_rank']) == ['x-tiny.py', 'x_r18.py', 'x_r50.py', 'x-base_8xb128.py',
                                                    'x-large_8xb16.py']


def test_the_page_is_what_the_records_give():
    folder = ROOT / 'docs/en/notes'
    state = TOOL['read_state'](str(folder / 'zoo_coverage.json'))
    assert (folder / 'zoo_coverage.md').read_text() == TOOL['page'](state)
    assert (folder / 'zoo_export.md').read_text() == TOOL['export_page'](state)
