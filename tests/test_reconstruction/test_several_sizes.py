"""Units over pyramid levels and images of several sizes."""
import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import advance, images
from reconstruction_for_tests import activations, run, weights

from mmquant.calibration.cache import Cache
from mmquant.losses import LpLoss
from mmquant.reconstruction.fisher import fisher_diagonal, of_divergence
from mmquant.reconstruction.fit import fit
from mmquant.reconstruction.optimizers import ParamGroup, Training
from mmquant.reconstruction.problem import Comparison, Problem, RaggedProblem


def problem(data, target, factor):
    rows = torch.arange(len(data))
    return Problem(lambda x: x * factor, dict(quant=data), (Comparison(LpLoss(), target, 1), ), rows, rows,
                   torch.device('cpu'))


def test_loss_is_the_mean_over_calls_and_sizes_by_their_share():
    factor = torch.ones(())
    calls = [problem(torch.ones(4, 1, 2, 2), torch.full((4, 1, 2, 2), 1.0 + k), factor) for k in (1, 3)]  # losses 1, 9
    other = [problem(torch.ones(12, 1, 3, 2), torch.ones(12, 1, 3, 2), factor)]
    ragged = RaggedProblem([calls, other])
    assert ragged.loss_on((0, [torch.arange(4)] * 2)).item() == 5
    assert ragged.held_loss(3) == pytest.approx(5 * 4 / 16)
    sampler = torch.Generator().manual_seed(0)
    drawn = [ragged.draw(sampler, 3) for _ in range(200)]
    assert 0.15 < sum(group == 0 for group, _ in drawn) / 200 < 0.35
    assert all(torch.equal(rows[0], rows[1]) for group, rows in drawn if group == 0)
    assert ragged.num_rows == 12


def test_fit_finds_the_common_factor():
    factor = torch.ones((), requires_grad=True)
    parts = [problem(x := images(8, 1, n, n, seed=n), x * 3, factor) for n in (4, 2)]
    fit_on = RaggedProblem([parts])
    fit(fit_on, [ParamGroup([factor], Training(0.05))], 200, 4, 0)
    assert factor.item() == pytest.approx(3, abs=0.05)


def reconstructed(cache=None, name='retinanet'):
    """Two sizes of images; a few steps for weights and for step sizes."""
    chunks = [images(3, 3, 64, 64, seed=1), images(2, 3, 64, 64, seed=2), images(3, 3, 32, 64, seed=3)]
    context = context_of(detector(name), chunks)
    context.cache = cache or Cache()
    for stage in (weights, activations):
        run(context, stage(num_iters=2, batch_size=2))
    return context


@needs_detectors
def test_all_units_of_a_detector_on_images_of_two_sizes():
    context = reconstructed()
    model, records = context.model, context.records
    units = [r['unit'] for r in records if r.get('step') == 'weights']
    assert len(units) == len(model.units()) - 1 and 'bbox_head.cls_convs.0' in units  # without the stem
    assert all(r['kept'] == 'nearest' or r['held_tuned'] < r['held_nearest'] for r in records
               if r.get('step') == 'activations')
    assert all(q.codes is not None for n, q in model.weight_quantizers().items() if n != 'backbone.conv1')


@needs_detectors
def test_two_stages():
    units = [r['unit'] for r in reconstructed(name='faster-rcnn').records if r.get('step') == 'weights']
    assert {'rpn_head.rpn_conv', 'roi_head.bbox_head.shared_fcs.0', 'roi_head.bbox_head.fc_reg'} <= set(units)


@needs_detectors
def test_a_limited_cache_changes_nothing(tmp_path):
    """Where activations are kept, memory or files, is no matter; and the files are gone afterwards."""
    cache = Cache(host='200KiB', folder=str(tmp_path))
    limited, free = reconstructed(cache), reconstructed()
    assert cache.peak['host'] <= 200 * 2**10 and cache.peak['disk'] > 2**19
    for a, b in zip(limited.records, free.records, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {'loss', 'curve'}:
            assert a[key] == (pytest.approx(b[key], rel=1e-4) if isinstance(b[key], float) else b[key])
    assert not list(tmp_path.iterdir())


@needs_detectors
def test_fisher_weights_of_a_shared_head():
    context = context_of(detector(), [images(2, 3, 64, 64)])
    model, stream = context.model, context.stream((True, False))
    unit = next(u for u in model.units() if u.name == 'bbox_head.cls_convs.0')
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        reference = context.run(0)
    with model.quantization(weights=True, activations=False):
        advance(stream, unit)
    quantizers = [model.weight_quantizers()[n] for n in unit.layers]
    with model.quantization(weights=False, activations=False):
        levels, = fisher_diagonal(stream, unit, quantizers, of_divergence([reference]))
    assert [x.shape[-1] for x in levels] == [8, 4, 2, 1]
    assert sum(x.sum() for x in levels) / sum(x.numel() for x in levels) == pytest.approx(1, rel=1e-3)
    assert len({round(x.mean().item(), 6) for x in levels}) > 1
