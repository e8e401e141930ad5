"""The loss as a function of clips: equal to full forward passes to the bit, at a fraction of their cost."""
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models_for_tests import BasicBlock, Chain, ResNet, ViT, calibrated, images, randomize
from torch import nn

from mmquant.calibration.context import CalibrationContext
from mmquant.losses.objectives import build_objective
from mmquant.models.layers import fixed_weights
from mmquant.search import ClipProblem
from mmquant.search.problem import find_clips, shares_behind
from mmquant.utils.building import ConfigError


class TwoHeads(nn.Module):
    """Residual blocks, one layer called on two levels, outputs from both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, 2, 1), BasicBlock(4, 4)
        self.down, self.head = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.block(self.stem(x))
        return [self.head(x), self.head(self.down(x))]


MODELS = dict(chain=Chain, residual=ResNet, vit=ViT, heads=TwoHeads)


def problem_of(name='residual', count=6, chunk=4, **more):
    torch.manual_seed(0)
    context = calibrated(randomize(MODELS[name]()), images(count, 3, 16, 16), chunk=chunk, w_bits=3, a_bits=3)
    return ClipProblem(context, build_objective(context, None, 'test'), **more)


@torch.no_grad()
def plain_loss(problem, x, base):
    """From the scales, by ordinary forward passes."""
    model = problem.model
    now = [clip.quantizer.scale.clone() for clip in problem.clips]
    for clip, scale, v in zip(problem.clips, base, x):
        clip.quantizer.scale.copy_(scale * math.exp(v))
    total = torch.zeros((), dtype=torch.float64)
    with fixed_weights(()), model.quantization(True, True):
        for index, chunk in enumerate(problem.context.chunks):
            total += problem.objective(model.run(chunk), index)
    for clip, scale in zip(problem.clips, now):
        clip.quantizer.scale.copy_(scale)
    return total.item() / problem.num_images


def points(size, count=14, seed=0):
    """A walk: mostly one coordinate forward, now and then one back, all at once, or the same again."""
    generator = torch.Generator().manual_seed(seed)
    x = [0.0] * size
    yield tuple(x)
    for k in range(count):
        t = float(torch.randn((), generator=generator)) * 0.3
        if k % 7 == 5:
            x = [v + t * 0.1 for v in x]
        else:
            i = int(torch.randint(size, (), generator=generator)) if k % 4 == 3 else min(size - 1, k * size // count)
            x[i] += t
        yield tuple(x)


@pytest.mark.parametrize('name', MODELS)
def test_every_value_is_that_of_a_full_forward_pass(name):
    problem = problem_of(name)
    base, pristine = [b.clone() for b, in problem.base], [c.clone() for c in problem.context.chunks]
    with problem:
        walk = list(points(problem.size))
        found = [problem.loss(x) for x in walk]
    assert found == [plain_loss(problem, x, base) for x in walk]
    assert len(set(found)) > 8 and problem.best_loss == min(found) and problem.best == walk[found.index(min(found))]
    assert problem.counts.image_forwards_saved > 0
    assert problem.counts.image_forwards + problem.counts.image_forwards_saved \
        == pytest.approx(problem.counts.evaluations * problem.num_images)
    assert all(torch.equal(a, b) for a, b in zip(problem.context.chunks, pristine))
    assert not any('forward' in m.__dict__ or '_fixed' in m.__dict__
                   for m in problem.model.architecture.modules())


def test_without_the_cache_values_are_the_same_and_nothing_is_saved():
    losses = []
    for use_cache in (True, False):
        with problem_of(use_cache=use_cache) as problem:
            losses.append([problem.loss(x) for x in points(problem.size)])
    assert losses[0] == losses[1] and problem.counts.image_forwards_saved == 0


def test_one_clip_for_each_quantizer_in_execution_order():
    problem = problem_of('residual')
    model = problem.model
    quantizers = [*model.weight_quantizers().values(), *model.activation_quantizers().values()]
    assert problem.size == len(quantizers) and {id(c.quantizer) for c in problem.clips} == {id(q) for q in quantizers}
    names = [c.name for c in problem.clips]
    assert names[:3] == ['weight of conv1', 'activation at maxpool.output', 'weight of layer1.0.conv1']
    assert names[-1] == 'weight of fc' or names[-1] == 'activation at fc.input'
    ticks = [c.tick for c in problem.clips]
    assert ticks == sorted(ticks)
    assert problem.shares[0] == 1 and problem.shares == sorted(problem.shares, reverse=True)
    assert shares_behind(model, [math.inf]) == [0]
    heads = [c.name for c in find_clips(problem_of('heads').model)]
    assert heads.count('weight of head') == 1  # called twice


def test_only_what_lies_behind_runs_and_only_the_changed_weight_is_quantized():
    with problem_of('residual', chunk=6) as problem:
        origin = [0.0] * problem.size
        problem.loss(origin)
        last = next(i for i, c in enumerate(problem.clips) if c.name == 'weight of layer2.1.conv2')
        move = [*origin[:last], 0.1, *origin[last + 1:]]
        problem.loss(move)  # from the start, keeping what lies in front of this clip
        ran, quantized = [], []
        for name, layer in problem.model.quantized_layers().items():
            forward = type(layer).forward
            layer.__dict__['forward'] = lambda *args, f=forward, m=layer, n=name: (ran.append(n), f(m, *args))[1]
            layer.weight_quantizer.register_forward_hook(
                lambda m, args, out, name=name: quantized.append(name) if m.enabled else None)
        before = problem.counts.image_forwards
        move[last] = 0.2
        problem.loss(move)
        assert quantized == ['layer2.1.conv2'] and ran == ['layer2.1.conv2', 'fc']
        spent = problem.counts.image_forwards - before
        assert spent == pytest.approx(problem.num_images * problem.shares[last]) and problem.shares[last] < 0.25


def test_same_point_twice_costs_nothing():
    with problem_of() as problem:
        assert problem.loss([0.0] * problem.size) == problem.loss([0.0] * problem.size)
        assert problem.counts.evaluations == 1


def test_settling_leaves_the_model_at_the_best_point():
    problem = problem_of()
    with problem:
        found = {x: problem.loss(x) for x in points(problem.size, seed=3)}
        best = min(found, key=found.get)
        expected = [b * math.exp(v) for (b, ), v in zip(problem.base, best)]
        assert problem.settle() == found[best]
        assert problem.loss([0.0] * problem.size) == found[best]
    assert all(torch.equal(c.quantizer.scale, s) for c, s in zip(problem.clips, expected))
    assert plain_loss(problem, [0.0] * problem.size, [b for b, in problem.base]) == found[best]


def test_gradient_is_that_of_straight_through_scales():
    problem = problem_of('chain')
    x, rows = [0.05] * problem.size, torch.tensor([2, 0])
    with problem:
        before = problem.loss(x)
        loss, slopes = problem.gradient(x, 0, rows)
        assert problem.loss([*x[:-1], 0.1]) != before and problem.loss(x) == before  # weights are quantized again
        assert (problem.counts.gradients, len(slopes)) == (1, problem.size)
    scales = [c.quantizer.scale.requires_grad_() for c in problem.clips]
    with problem.model.quantization(True, True):
        total = problem.objective(problem.model.run(problem.context.chunks[0][rows]), 0, rows) / 2
    grads = torch.autograd.grad(total, scales)
    assert loss == pytest.approx(total.item()) and sum(abs(s) for s in slopes) > 0
    assert slopes == pytest.approx([(g * s).sum().item() for g, s in zip(grads, scales)], rel=1e-4, abs=1e-7)


def two_ranks(monkeypatch, work):
    """``work(rank)`` in two threads, for which sums over processes are sums over these threads."""
    barrier, values_of = threading.Barrier(2, timeout=60), {}

    def sum_over_threads(*values):
        barrier.wait()
        values_of[threading.get_ident()] = values
        barrier.wait()
        return [sum(column) for column in zip(*values_of.values())]

    monkeypatch.setattr('mmquant.search.problem.sum_over_ranks', sum_over_threads)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def test_two_processes_see_the_loss_of_one(monkeypatch):
    """Images 0, 2, ... here and 1, 3, ... there: the loss, the gradient and the costs are those of all images."""
    rows = torch.arange(6)

    def follow(problem):
        with problem:
            walk = list(points(problem.size, count=6))
            losses, counts = [problem.loss(x) for x in walk], vars(problem.counts).copy()
            return losses, problem.gradient(walk[-1], 0, rows[:problem.context.sizes[0]]), counts

    losses, (loss, slopes), counts = follow(problem_of('chain', chunk=6))
    ranks = [problem_of('chain', chunk=6) for _ in range(2)]

    def work(rank):
        model, (chunk, ) = ranks[rank].model, ranks[rank].context.chunks
        context = CalibrationContext(model, [chunk[rank::2]])
        return follow(ClipProblem(context, build_objective(context, None, 'test')))

    first, second = two_ranks(monkeypatch, work)
    assert first == second
    assert first[0] == pytest.approx(losses, rel=1e-5) and first[2] == pytest.approx(counts)
    assert first[1][0] == pytest.approx(loss, rel=1e-5) and first[1][1] == pytest.approx(slopes, rel=1e-3, abs=1e-6)
    assert counts['image_forwards'] > 6 and len(set(losses)) > 4


def test_undefined_losses_are_infinite_and_counted():
    problem = problem_of('chain')
    objective = problem.objective
    problem.objective = lambda out, chunk: objective(out, chunk) * (math.nan if problem._installed[0] > 0.5 else 1)
    with problem:
        origin = [0.0] * problem.size
        first = problem.loss(origin)
        assert problem.loss([1.0, *origin[1:]]) == math.inf and problem.counts.undefined == 1
        assert problem.best == tuple(origin) and problem.best_loss == first and problem.settle() == first


def test_one_clip_for_each_call_of_a_shared_head():
    """Levels with their own input quantizer: each is a coordinate, met where its call is."""
    torch.manual_seed(0)
    cfg = dict(w_bits=3, a_bits=3, per_call=True)
    context = calibrated(randomize(TwoHeads()), images(4, 3, 16, 16), chunk=4, **cfg)
    with ClipProblem(context, build_objective(context, None, 'test')) as problem:
        base = [b.clone() for b, in problem.base]
        walk = list(points(problem.size))
        assert [problem.loss(x) for x in walk] == [plain_loss(problem, x, base) for x in walk]
    assert problem.size == len(context.model.weight_quantizers()) + len(context.model.activation_quantizers())


def test_refusals():
    problem = problem_of('chain')
    problem.model.architecture.convs[1].training = True
    with pytest.raises(ConfigError, match=r'1 modules are in training mode \(first: convs\.1\), so dropout'):
        ClipProblem(problem.context, problem.objective)
    problem.model.architecture.convs[1].training = False
    problem.model.quantized_layers = dict
    problem.model.activation_quantizers = dict
    with pytest.raises(ConfigError, match='no quantizer is selected, so there are no clips to search: give bits to'):
        ClipProblem(problem.context, problem.objective)


def test_random_loss_is_noticed():

    class Noisy(Chain):

        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    MODELS['noisy'] = Noisy
    try:
        with problem_of('noisy') as problem, pytest.raises(ConfigError, match='the loss is not deterministic: '):
            problem.check_deterministic()
    finally:
        del MODELS['noisy']
    with problem_of('chain') as problem:
        assert problem.check_deterministic() == problem.loss([0.0] * problem.size)


def test_bfloat16_is_near_and_repeats_to_the_bit():
    with problem_of('residual') as exact, problem_of('residual', amp=True) as problem:
        walk = list(points(problem.size, count=6))
        full, found = [exact.loss(x) for x in walk], [problem.loss(x) for x in walk]
    with problem_of('residual', amp=True, use_cache=False) as again:
        assert [again.loss(x) for x in walk] == found != full
    assert all(0.1 < a / b < 10 for a, b in zip(found, full))
