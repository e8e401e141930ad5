"""Usual loaders work, or an error is about ``calib_loader``."""
import copy

import pytest
import torch
from models_for_tests import MIN_MAX, images
from torch import nn
from torch.utils.data import TensorDataset

import mmquant
from mmquant.apis.quantize import recipe_steps
from mmquant.utils.building import ConfigError

NEAREST = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
           dict(type='mmquant.InitWeightRange', observer=MIN_MAX),
           dict(type='mmquant.InitActivationRange', observer=MIN_MAX)]
X, LABELS = images(16, 3, 16, 16), torch.zeros(16, dtype=torch.long)


def small(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 3)).eval().to(dtype)


def quantized(loader, model=None, recipe=NEAREST, **settings):
    return mmquant.quantize(model or small(), loader, recipe, 8, 8, **settings)


@pytest.fixture(scope='module')
def expected():
    with torch.no_grad():
        return quantized([X])(X)


@pytest.mark.parametrize('loader', [
    [dict(labels=LABELS, pixel_values=X)], [(LABELS, X)], [[LABELS, X]], TensorDataset(X, LABELS), X, [X.double()],
    [(list(X), list(LABELS))], [list(X)], (x for x in X.split(4)), [X[:0], X], [dict(boxes=torch.ones(16, 4), data=X)],
    [dict(mask=images(16, 1, 16, 16), img=X)]],
    ids='labels-first index-first list dataset tensor float64 images list-of-images generator empty-batch boxes mask'
    .split())
def test_images_are_found(loader, expected):
    with torch.no_grad():
        assert torch.equal(quantized(loader)(X), expected)


def test_a_half_model_gets_half_images():
    q = quantized([X], small(torch.float16))
    with torch.no_grad():
        assert torch.isfinite(q(X.half())).all()


def test_several_sizes():
    q = quantized([X, images(4, 3, 24, 24)])
    assert q.ready == (True, True)


def test_images_of_several_sizes_in_one_batch():
    q = quantized([[*X[:4], *images(4, 3, 24, 24)]])
    assert q.ready == (True, True)


@pytest.mark.parametrize('loader, text', [
    (None, 'calib_loader must yield batches of image tensors.*got None'), ('a/', 'got str'), (dict(x=X), 'got dict'),
    (lambda: X, 'got function'), ([X.byte()], 'torch.uint8.*normalise'), ([['a.png']], 'got str; convert'),
    ([dict(a=X, b=X)], "may be 'a', 'b'"), ([images(9, 5, 16, 16)], r'calib_loader: the model does not run.*\(9, 5, '),
    ([X[0]], 'calib_loader: the model does not run'), ([LABELS], 'calib_loader: the model does not run')])
def test_what_is_no_image_is_told(loader, text):
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=text):
        quantized(loader, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('loader', [[], [X[:0]], [X[:0], X[:0]]])
def test_nothing_at_all(loader):
    with pytest.raises(ValueError, match='calibration set is empty'):
        quantized(loader)


def test_models_that_are_none():
    with pytest.raises(ConfigError, match='must be a torch.nn.Module.*got str'):
        mmquant.quantize('resnet', [X])
    with pytest.raises(ConfigError, match='ReLU has no parameters'):
        mmquant.quantize(nn.ReLU(), [X])


@pytest.mark.parametrize('setting', [dict(chunk_size=0), dict(seed=None), dict(chunk_size=None), dict(seed=-1)])
def test_settings_out_of_range(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        quantized([X], **setting)


class Block(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Frozen(Block):

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def with_block(block) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), block(), nn.Conv2d(16, 5, 3)).eval()


def fitted(net=None):
    return mmquant.quantize(net or with_block(Block), [X], 'brecq', 4, 4, num_iters=5)


def test_gradients_switched_off_by_the_caller():
    reference = fitted()
    for off in (torch.no_grad, torch.inference_mode):
        net = with_block(Block)
        with off():
            inner, outer = fitted(), fitted(net)  # built inside, too
            y = inner(X)
        assert torch.equal(outer(X), y) and torch.equal(reference(X), y)


def test_blocks_without_gradients_are_named():
    with pytest.raises(ValueError, match=r'unit 1 runs 1\.a, 1\.b without gradients'):
        fitted(with_block(Frozen))


def test_no_fisher_information_behind_a_block_without_gradients():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), Block(), Frozen(), nn.Conv2d(16, 5, 3)).eval()
    steps = recipe_steps('brecq', num_iters=5)
    steps['weights']['terms'] = dict(unit=dict(type='mmquant.FisherLoss'))
    with pytest.raises(ValueError, match='behind unit .* the net runs without gradients'):
        mmquant.quantize(net, [X], steps, 4, 4)
