"""Rows of a fit are what a unit looks at by itself, wherever it keeps its images."""
import pytest
import torch
from models_for_tests import MIN_MAX, images, quantizer_cfg, silent
from reconstruction_for_tests import weights
from torch import nn

from mmquant.algorithms import CalibrationContext
from mmquant.apis.quantize import run_steps
from mmquant.calibration.items import PLAIN, WHOLE, Items, Layout, find_items
from mmquant.models import QuantizedModel
from mmquant.registry import STEPS
from mmquant.utils.building import build


@pytest.mark.parametrize('layout', [PLAIN, Layout(1), Layout(2), Layout(0, 3), Layout(1, 2)])
def test_layouts_come_back(layout):
    x = images(6, 4, 5)
    items = layout.split(x)
    assert len(items) == x.shape[layout.axis] // layout.size
    assert torch.equal(layout.merge(items), x)


def test_a_whole_tensor_is_one_item():
    x = images(6, 4)
    assert WHOLE.split(x).shape == (1, 6, 4) and torch.equal(WHOLE.merge(x[None]), x)
    assert Items({}, (), float('inf')).rows(32) == 1 and Items({}, (), 4).rows(32) == 8
    assert Items({}, (), 0.25).rows(32) == 32  # windows: as ever


class Shift(nn.Module):
    """A residual block with a temporal shift: the frames of a clip are neighbouring rows."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames, self.a, self.b = frames, nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        clip = x.view(-1, self.frames, *x.shape[1:])
        mixed = torch.cat([clip[:, :, :4].roll(1, 1), clip[:, :, 4:]], 2).view_as(x)
        return x + self.b(self.a(mixed).relu())


@pytest.mark.parametrize('frames', [1, 2, 3, 4, 12])
def test_frames_of_a_clip_stay_together(frames):
    block = Shift(frames)
    with torch.no_grad():
        items = find_items(lambda a: block(*a[0]), [(((images(12, 8, 4, 4), ), {}), 12)], (0, ))
    assert items.images == (frames if frames < 12 else float('inf'))
    assert items.inputs[0] == (Layout(0, frames) if frames < 12 else WHOLE)


def test_images_on_the_second_axis():
    """Attention of tokens (L, N, C); the mask (N, L) has its images first."""
    attention = nn.MultiheadAttention(8, 2).eval()

    def run(arguments):
        (x, mask), _ = arguments
        return attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]

    x, mask = images(7, 6, 8), torch.zeros(6, 7, dtype=torch.bool)
    mask[:, 5:] = True
    with torch.no_grad():
        items = find_items(run, [(((x, mask), {}), 6)], (0, ))
    assert items.images == 1 and items.inputs == {0: Layout(1), 1: Layout(0)} and items.outputs == (Layout(1), )


def test_arguments_that_follow_the_batch_without_a_pixel():
    """Expanded queries are cut along with the images; a table of positions as long as the batch is not."""

    def run(arguments):
        (x, queries, positions), _ = arguments
        return x @ queries.mT + positions[:, 0]

    x, queries = images(6, 6, 8), images(1, 6, 8, seed=1).expand(6, 6, 8)
    items = find_items(run, [(((x, queries, images(6, 6, seed=2)), {}), 6)], (0, ))
    assert items.inputs == {0: PLAIN, 1: PLAIN} and items.images == 1


def test_windows_of_an_image_belong_together():
    """Windows (N * 4, C) that a module adds up over each image; it returns a row an image."""
    items = find_items(lambda a: a[0][0].view(-1, 4, 8).sum(1), [(((images(24, 8), ), {}), 6)], (0, ))
    assert items.images == 1 and items.inputs == {0: Layout(0, 4)} and items.outputs == (PLAIN, )


def test_means_over_the_batch_make_it_one_item():
    items = find_items(lambda a: a[0][0] - a[0][0].mean(0), [(((images(6, 8), ), {}), 6)], (0, ))
    assert items.images == float('inf') and items.inputs == {0: WHOLE} and items.outputs == (WHOLE, )


def test_chunks_of_one_image_are_compared_with_the_next_one():
    parts = [(((images(1, 8, seed=n), ), {}), 1) for n in range(2)]
    assert find_items(lambda a: a[0][0] * 2, parts, (0, )).inputs == {0: PLAIN}
    assert find_items(lambda a: a[0][0] - a[0][0].mean(0), parts, (0, )).inputs == {0: WHOLE}


class Tokens(nn.Module):
    """Images to tokens (L, N, C), a transformer layer with queries (L, N, C) that hold no pixel, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 4, 4), TokenBlock(), nn.Linear(8, 5)
        self.queries = nn.Parameter(images(1, 1, 8))

    def forward(self, x):
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        return self.fc(self.block(x, self.queries.expand(len(x), x.shape[1], 8)).mean(0))


class TokenBlock(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x, queries):
        q, k, v = self.q(x + queries).transpose(0, 1), self.k(x).transpose(0, 1), self.v(x).transpose(0, 1)
        return x + ((q @ k.mT).softmax(-1) @ v).transpose(0, 1)


def fitted(net: nn.Module, x: torch.Tensor, sizes, blocks=()) -> list[dict]:
    """Records of units whose weights of 16 bits are fitted to the float outputs."""
    torch.manual_seed(0)
    U = 'mmquant.UniformAffineQuantizer'
    spec = dict(quantizer_cfg(), weight=dict(type=U, bits=16, granularity='channel'),
                activation=dict(type=U, bits=None), overrides=[], block_types=blocks)
    context = CalibrationContext(QuantizedModel(net.eval(), spec, 'random'), list(x.split(sizes)), progress=silent)
    steps = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
             dict(type='mmquant.InitWeightRange', observer=MIN_MAX), weights(num_iters=3, batch_size=8)]
    run_steps(context, [build(STEPS, s, 'step') for s in steps])
    return [r for r in context.records if r['kind'] == 'unit']


@pytest.mark.parametrize('frames', [1, 2, 4])
def test_clips_are_fitted_to_their_own_frames(frames):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Shift(frames), Shift(frames), nn.Conv2d(8, 2, 1))
    records = fitted(net, images(40, 3, 6, 6), 16)
    assert {r['unit'] for r in records} >= {'1', '2'}
    assert all(r['held_nearest'] < 1e-6 and r['loss'] < 1e-3 for r in records)


def test_tokens_first_are_fitted_image_by_image():
    """Chunks of different numbers of images, too."""
    records = fitted(Tokens(), images(20, 3, 12, 12), 8, ('TokenBlock', ))
    assert 'block' in {r['unit'] for r in records}
    assert all(r['held_nearest'] < 1e-6 for r in records)


def test_an_argument_that_changes_from_chunk_to_chunk_is_refused():
    class Block(TokenBlock):
        def forward(self, x, shift):
            return super().forward(x, shift)

    class Net(Tokens):
        count = 0

        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            Net.count += 1
            x = self.stem(x).flatten(2).permute(2, 0, 1)
            return self.fc(self.block(x, torch.full((8, ), float(len(x[0])))).mean(0))

    Block.__name__ = 'TokenBlock'
    with pytest.raises(ValueError, match='unit block: its argument number 1, of shape \\(8,\\), differs'):
        fitted(Net(), images(20, 3, 12, 12), 8, ('TokenBlock', ))
