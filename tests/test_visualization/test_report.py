"""The report page: what is on it, without a network, looked at in a browser where there is one."""
import dataclasses
import html.parser
import re
import shutil
import subprocess

import numpy as np
import pytest
from models_for_tests import ResNet, calibrated, images, randomize

from mmquant.analysis.inspection import Inspection, inspect
from mmquant.analysis.sensitivity import LayerSensitivity
from mmquant.models.cost import model_cost
from mmquant.visualization.deployed import add_deployed, strip_figure
from mmquant.visualization.figures import sensitivity_figure, to_array
from mmquant.visualization.report import Run, add_sensitivity, figures_of, scalars_of, write_report

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FIGURES = ['accuracy', 'layer_errors', 'flipped_roundings', 'losses', 'cost', 'weight_histograms',
           'activation_histograms']


def unit(step, name, flipped, **more):
    return dict(kind='unit', step=step, unit=name, flipped=flipped, undecided=0.1, kept='tuned',
                curve=[[1, 2.0], [5, 1.0], [10, 0.02]], **more)


@pytest.fixture(scope='module')
def run():
    context = calibrated(randomize(ResNet()), images(8, 3, 16, 16))
    stages = [dict(name=n, metrics={'accuracy/top1': v, 'accuracy/top5': 100.0}, seconds=1.0)
              for n, v in (('float', 99.0), ('nearest', 41.5), ('weights', 97.0), ('final', 98.0))]
    records = [dict(kind='folded', pairs=3), unit('weights', 'layer1.0', 0.05), unit('weights', '', 0.1)]
    records += [{k: v for k, v in unit('activations', 'layer1.0', 0).items() if k not in ('flipped', 'undecided')}]
    return Run('net_w4a4', dict(seed=3, torch='2.x'), stages, records, model_cost(context.model, 2),
               inspect(context.model, context.images(4)), 75.0, 2**30, "model = dict(type='<Net>')")


@pytest.fixture(scope='module')
def page(run, tmp_path_factory):
    return write_report(str(tmp_path_factory.mktemp('report') / 'report.html'), run, figures_of(run))


class Outline(html.parser.HTMLParser):
    """Ids, and the addresses a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.fetched, self.svgs, self.open = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values['id']] if tag == 'section' else []
        self.svgs += tag == 'svg'
        self.fetched += [v for k, v in attributes if k in ('src', 'href', 'xlink:href') and not v.startswith('#')]
        self.fetched += ['script'] if tag in ('script', 'link', 'iframe') else []


def test_everything_is_there_and_nothing_is_fetched(page):
    text = open(page, encoding='utf-8').read()
    outline = Outline(text)
    assert outline.ids == ['accuracy', 'layers', 'sensitivity', 'deployed', 'roundings', 'losses', 'weights',
                           'activations', 'cost', 'config']
    assert outline.svgs == len(FIGURES) and outline.fetched == []
    assert not re.search(r'url\((?!#)|@import', text)
    for expected in ('net_w4a4', 'seed 3', '98.00', '41.50', '1.2 min', '1.00 GiB', 'layer2.0.downsample.0',
                     'type=&#x27;&lt;Net&gt;&#x27;', '<td class="n bad">',
                     '<p class="bad">Undecided roundings: weights: 10% of layer1.0 (and more than 5% in 1 '):
        assert expected in text, expected
    assert len(text) < 1_000_000


def test_figures(run):
    figures = figures_of(run)
    assert list(figures) == FIGURES
    for figure in figures.values():
        pixels = to_array(figure)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 5
    bars = figures['accuracy'].axes[0].patches
    assert [round(b.get_height(), 2) for b in bars] == [99.0, 41.5, 97.0, 98.0]
    assert [round(b.get_height(), 2) for b in figures['flipped_roundings'].axes[0].patches] == [5.0, 10.0]
    assert [a.get_title(loc='left') for a in figures['losses'].axes] == ['weights', 'activations']
    line = figures['losses'].axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([1, 0.5, 0.01])
    assert len(figures['weight_histograms'].axes[0].collections[0].get_paths()) == len(run.inspection.weights)


def test_what_was_not_measured_is_left_out(run, tmp_path):
    bare = Run('x', {}, [], [], run.cost, Inspection({}, {}, (), ()), 1.0, 1, '')
    figures = figures_of(bare)
    assert list(figures) == ['cost']
    outline = Outline(open(write_report(str(tmp_path / 'r.html'), bare, figures), encoding='utf-8').read())
    assert outline.ids == ['layers', 'sensitivity', 'deployed', 'cost', 'config'] and outline.svgs == 1


def sensitivity(name, sqnr, drop=None, **more):
    return LayerSensitivity(name, 4, 8, sqnr, drop=drop, gain=drop and drop / 2, **more)


def test_sensitivity_is_added_and_exchanged(run, tmp_path):
    path = write_report(str(tmp_path / 'r.html'), run, {})
    assert 'Not measured yet; this adds it: <code>python tools/analysis_tools/sensitivity.py' in open(path).read()
    assert add_sensitivity(path, [sensitivity('old.layer', 3.0)])
    alone = open(path).read()
    assert 'old.layer' in alone and alone.count('Not measured') == 1 and '<th class=n>drop</th>' not in alone
    rows = [sensitivity('fc', 12.25, 7.5), sensitivity('conv1', 30.0, 0.25), sensitivity('silent', None, 0.0)]
    assert add_sensitivity(path, rows)
    text = open(path).read()
    outline = Outline(text)
    assert 'old.layer' not in text and outline.svgs == 1 and outline.fetched == []
    assert '<td>fc</td><td class="n">4</td><td class="n">8</td><td class="n">12.25</td><td class="n">7.50</td>' in text
    section = text[text.index('id="sensitivity"'):]
    assert section.index('<td>fc<') < section.index('<td>conv1<') and outline.ids.count('sensitivity') == 1
    (tmp_path / 'other.html').write_text('<p>another page</p>')
    assert not add_sensitivity(str(tmp_path / 'other.html'), rows)


def test_figure_of_sensitivity():
    rows = [sensitivity(f'layer{i}', 50.0 - i, 5.0 - i) for i in range(60)]
    axes = sensitivity_figure(rows).axes
    assert [len(a.patches) for a in axes] == [40] * 3 and axes[1].patches[-1].get_width() == 5  # the worst on top
    assert len(sensitivity_figure([sensitivity('fc', 2.0)]).axes) == 1


def test_scalars(run):
    found = scalars_of(run)
    assert found['report/size_mb'] == run.cost.size_mb and found['flipped/net'] == 0.1
    assert found['weight_sqnr/conv1'] == run.inspection.weight_sqnr['conv1'] and 'output_sqnr/fc' in found


@pytest.mark.skipif(BROWSER is None, reason='no chromium or chrome to look at the page with')
def test_in_a_browser(page, tmp_path):
    """The page as drawn: dark header, and ink in the places of the figures."""
    from PIL import Image
    shot = tmp_path / 'shot.png'
    options = ['--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1200,4000']
    subprocess.run([BROWSER, '--headless', *options, f'--user-data-dir={tmp_path}/profile', f'--screenshot={shot}',
                    f'file://{page}'], timeout=120, capture_output=True)
    pixels = np.asarray(Image.open(shot).convert('RGB')).astype(int)
    assert pixels.shape[:2] == (4000, 1200) and pixels[5, 600].max() < 80
    blue, orange = [43, 108, 153], [200, 112, 42]
    for color in (blue, orange):
        assert (abs(pixels - color).sum(-1) < 60).sum() > 2000
    rows = np.flatnonzero((abs(pixels - blue).sum(-1) < 60).any(1))
    assert rows.max() - rows.min() > 1500  # figures all over the page


@pytest.mark.parametrize('values', [
    dict(float=.3, nearest=None, final=.29), dict(float=.3, nearest=.1, final=None),
    dict(float=None, nearest=None, final=.3), dict(float=float('nan'), nearest=.1, final=.2),
    dict(float=-1., final=-1.),
    dict(float=None, final=None)])
def test_stages_without_metrics(run, tmp_path, values):
    """A detector that finds nothing has no metrics: the report says so and has all the rest."""
    stages = [dict(name=n, metrics={} if v is None else {'coco/bbox_mAP': v}, seconds=1.) for n, v in values.items()]
    part = dataclasses.replace(run, stages=stages)
    figures = figures_of(part)
    assert ('accuracy' in figures) == any(v is not None for v in values.values()) and 'layer_errors' in figures
    text = open(write_report(str(tmp_path / 'r.html'), part, figures), encoding='utf-8').read()
    lost = [n for n, v in values.items() if v is None]
    assert len(re.findall('<b>nothing found</b>', text)) == len(lost) and 'packed; float' in text


def test_deployed_is_added_and_exchanged(run, tmp_path):
    path = write_report(str(tmp_path / 'r.html'), run, {})
    found = dict(codes=10**6, codes_differing=0, worst_share=3e-5, largest_step=1, agreement=0.995,
                 metrics={'accuracy/top1': [98.25, 98.5]}, integer_share=0.875, latency_ms=1.25, failures=[],
                 bytes={'model.onnx': 752978}, islands=[['Softmax', 'Softmax has no integer kernel']],
                 nodes=[['conv1', 'Conv', True], ['act', 'Softmax', False], ['fc', 'Gemm', True]])
    assert add_deployed(path, dict(found, failures=['G2: too far']))
    assert '<p class="bad">G2: too far</p>' in open(path).read()
    assert add_deployed(path, found)
    text = open(path).read()
    for expected in ('All gates are passed', '98.2500 / 98.5000', '87.50%', '0.0030%', '0.753', '1.25',
                     'Softmax has no integer kernel'):
        assert expected in text, expected
    assert 'too far' not in text and Outline(text).svgs == 1
    bars = [p.get_x() for p in strip_figure(found['nodes']).axes[0].patches]
    assert bars == pytest.approx([-0.45, 1.55, 0.55])
