import functools

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import ResNet, calibrated, images, randomize
from torch import nn

from mmquant.calibration import moments as module
from mmquant.calibration.moments import Moments, add_squares, collect
from mmquant.models.layer_matrix import LayerMatrix


class Shared(nn.Module):
    """One head for two maps of different size; its layer is depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1, groups=4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(x), self.head(F.max_pool2d(x, 2))


def moments_of(context, wanted, streams=None, **more):
    """Moments of one layer, and its matrix."""
    streams = streams or dict(inputs='quantized')
    for visit in context.visits('layer', None, streams):
        if wanted in visit.unit.layers:
            matrix = LayerMatrix(context.model.architecture.get_submodule(wanted), **more)
            return matrix, collect(visit, wanted, matrix, tuple(streams))


def rows_of(context, wanted, matrix, weights, activations):
    """All rows of a layer by a hook in the whole model: one list entry per call, (g, m, C)."""
    found, seen, layer = [], [], context.model.architecture.get_submodule(wanted)
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad(), context.model.quantization(weights, activations):
        for chunk in context.chunks:
            context.model.run(chunk)
        handle.remove()
        for x in found:
            with matrix.caught(seen.append):
                layer(x)
    return [torch.cat(list(matrix.pieces(windows)), 1).double() for windows in seen]


@pytest.mark.parametrize('mode', ['float', 'weights', 'quantized'])
def test_sums_are_those_of_all_rows_in_the_streams_mode(mode):
    context = calibrated(randomize(ResNet()), images(16, 3, 8, 8), chunk=4, w_bits=3, overrides=())
    matrix, (solved, held) = moments_of(context, 'layer1.1.conv2', dict(inputs=mode))
    rows = rows_of(context, 'layer1.1.conv2', matrix, *dict(float=(0, 0), weights=(1, 0), quantized=(1, 1))[mode])
    expected = [r.mT @ r for r in rows]
    torch.testing.assert_close(solved.gram, sum(expected), rtol=1e-5, atol=1e-6)  # chunks of 4: no eighth of the chunks
    assert held is solved and solved.count == 16 * 16 and solved.gram.dtype == torch.float64


def test_the_last_eighth_of_each_chunk_and_every_eighth_small_chunk_are_kept_out():
    for chunk in (16, 1):
        context = calibrated(randomize(ResNet()), images(32 if chunk > 1 else 16, 3, 8, 8), chunk=chunk, overrides=())
        matrix, (solved, held) = moments_of(context, 'layer1.0.conv1')
        rows = rows_of(context, 'layer1.0.conv1', matrix, True, True)
        out = [r[:, -2 * 16:] for r in rows] if chunk > 1 else [rows[7], rows[15]]
        torch.testing.assert_close(held.gram, sum(r.mT @ r for r in out), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(solved.gram + held.gram, sum(r.mT @ r for r in rows), rtol=1e-5, atol=1e-6)
        assert solved.count == 7 * held.count


def test_a_shared_head_counts_all_its_calls_and_groups_have_sums_of_their_own(monkeypatch):
    context = calibrated(randomize(Shared()), images(4, 3, 8, 8), chunk=2, overrides=())
    whole = moments_of(context, 'head')
    monkeypatch.setattr(module, 'HELD_OUT', 99)
    matrix, (solved, _) = moments_of(context, 'head')
    rows = rows_of(context, 'head', matrix, True, True)
    assert len(rows) == 4 and solved.count == sum(r.shape[1] for r in rows) == 4 * (64 + 16)
    torch.testing.assert_close(solved.gram, sum(r.mT @ r for r in rows), rtol=1e-5, atol=1e-6)
    assert solved.gram.shape == (4, 9, 9) and torch.equal(whole[1][0].gram, solved.gram)


def test_cross_sums_of_two_streams_give_the_error_against_the_float_output():
    context = calibrated(randomize(ResNet()), images(8, 3, 8, 8), chunk=4, w_bits=2, a_bits=3, overrides=())
    name, layer = 'layer2.0.conv2', context.model.architecture.layer2[0].conv2
    matrix, (solved, _) = moments_of(context, name, dict(inputs='quantized', exact='float'))
    x = torch.cat(rows_of(context, name, matrix, True, True), 1)
    y = torch.cat(rows_of(context, name, matrix, False, False), 1)
    for found, expected in ((solved.gram, x.mT @ x), (solved.cross, x.mT @ y), (solved.exact, y.mT @ y)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    weight = matrix.matrix(layer._parameters['weight'].double())
    values = matrix.matrix(layer.weight_quantizer(layer._parameters['weight']).double())
    expected = (y @ weight.mT - x @ values.mT).square().sum(1)
    torch.testing.assert_close(solved.error(weight, values), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(solved.energy(weight), (y @ weight.mT).square().sum(1), rtol=1e-5, atol=1e-4)


def test_error_without_cross_sums_and_pieces_of_any_size(monkeypatch):
    layer, x = nn.Conv2d(4, 6, 3, padding=1, groups=2).double(), images(3, 4, 6, 5).double()
    matrix, weight = LayerMatrix(layer), layer.weight.detach()
    rows, found = matrix.rows(x), []
    for limit in (30, 10**6):
        whole = Moments(matrix)
        monkeypatch.setattr(matrix, 'pieces', functools.partial(matrix.pieces, limit=limit))
        with matrix.caught(whole.add):
            layer(x)
        monkeypatch.undo()
        found.append(whole)
    values = matrix.matrix(weight.round())
    expected = (rows @ (matrix.matrix(weight) - values).mT).square().sum(1)
    for sums in found:
        assert sums.count == 90
        torch.testing.assert_close(sums.error(matrix.matrix(weight), values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('strip', [1, 4, 7, 100])
def test_squares_in_strips(strip):
    rows = images(3, 20, 11).double()
    gram = torch.ones(3, 11, 11).double()
    add_squares(gram, rows, strip)
    torch.testing.assert_close(gram, 1 + rows.mT @ rows, rtol=1e-13, atol=1e-13)


def test_sums_over_processes(monkeypatch):
    monkeypatch.setattr(module, 'sum_tensor_over_ranks', lambda x: 2 * x)
    monkeypatch.setattr(module, 'sum_over_ranks', lambda *values: [2 * v for v in values])
    sums = Moments(LayerMatrix(nn.Linear(3, 2)))
    sums.add(torch.ones(5, 1, 3))
    assert torch.equal(sums.over_ranks().gram, torch.full((1, 3, 3), 10.0)) and sums.count == 10


def test_wide_layers_are_summed_in_single_precision():
    assert Moments(LayerMatrix(nn.Linear(1025, 2))).gram.dtype == torch.float32
    assert Moments(LayerMatrix(nn.Linear(1025, 2), 1024)).gram.shape == (5, 205, 205)


def test_bad_input():
    context = calibrated(randomize(ResNet()), images(8, 3, 8, 8), chunk=8, overrides=())
    context.chunks[0][3, 0, 2, 2] = torch.nan
    with pytest.raises(FloatingPointError, match='the input of conv1 holds NaN or infinite values'):
        moments_of(context, 'conv1', dict(inputs='float'))
    context = calibrated(randomize(ResNet()), images(8, 3, 8, 8), chunk=8, overrides=())
    context.model.architecture.conv1.forward = lambda x: x[:, :1].repeat(1, 4, 1, 1)
    with pytest.raises(ValueError, match='conv1 has no rows to solve for: no image reached it'):
        moments_of(context, 'conv1')


@pytest.mark.parametrize('name', ['stem', 'up', 'fc'])
def test_rows_drawn_at_random_stand_for_all(name):
    class Net(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(F.relu(self.up(F.relu(self.stem(x)))).permute(0, 2, 3, 1))

    context = calibrated(randomize(Net()), images(256, 3, 16, 16).abs(), chunk=64, overrides=(), a_bits=None)
    total = 256 * (64 if name == 'stem' else 256)
    for visit in context.visits('layer', None, ('float', )):
        if name in visit.unit.layers:
            matrix = LayerMatrix(context.model.architecture.get_submodule(name))
            every, _ = collect(visit, name, matrix, ('float', ))
            some, held = collect(visit, name, matrix, ('float', ), total // 9)
            again, _ = collect(visit, name, matrix, ('float', ), total // 9)
    assert every.count == total * 7 // 8 and torch.equal(some.gram, again.gram)
    assert some.count == pytest.approx(every.count / 9, rel=0.1)
    assert held.count == pytest.approx(some.count / 7, rel=0.2)
    ratio = ((some.gram / some.count) / (every.gram / every.count)).diagonal(dim1=1, dim2=2)
    assert abs(ratio.mean() - 1) < 0.05 and (ratio - 1).abs().max() < 0.3
