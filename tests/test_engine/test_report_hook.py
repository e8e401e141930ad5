"""The report of a run: page, scalars and images; a report that fails costs a warning, never the run."""
import json

from reconstruction_for_tests import weights
from tools_for_tests import STEPS, log_of, runner_of

from mmquant.visualization import report

HOOKS = [dict(type='mmquant.EvaluationHook'), dict(type='mmquant.ReportHook', num_images=4)]
TUNED = [*STEPS, weights(num_iters=2)]


def test_page_scalars_and_images(tmp_path):
    runner_of(tmp_path, TUNED, HOOKS).train()
    text = (tmp_path / 'report.html').read_text()
    assert text.count('<svg') == 7 and '<h1>resnet18_w2a4_digits</h1>' in text and 'calibrated with 24 images' in text
    images = {p.name for p in tmp_path.glob('*/vis_data/vis_image/*.png')}
    assert images == {f'report_{n}_0.png' for n in (
        'accuracy', 'layer_errors', 'flipped_roundings', 'losses', 'cost', 'weight_histograms',
        'activation_histograms')}
    scalars = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert any('output_sqnr/head.fc' in s for s in scalars)
    curve = [s['loss/weights/backbone.layer1.0'] for s in scalars if 'loss/weights/backbone.layer1.0' in s]
    records = json.loads((tmp_path / 'results.json').read_text())['records']
    first = next(r for r in records if r['kind'] == 'unit' and r['unit'] == 'backbone.layer1.0')
    assert [step for step, _ in first['curve']] == [1, 2] and curve == [loss for _, loss in first['curve']]


def test_failing_report_is_a_warning(tmp_path, monkeypatch):

    def fails(*args):
        raise OSError('no space')

    monkeypatch.setattr(report, 'write_report', fails)
    runner_of(tmp_path, hooks=HOOKS).train()
    assert (tmp_path / 'quantized.pth').exists() and (tmp_path / 'results.json').exists()
    assert 'No report was written (OSError: no space)' in log_of(tmp_path)
