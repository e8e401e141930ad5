"""QDrop's properties: dropping quantization at the input and inside of a unit while it is fitted, and never after."""
import pytest
import torch
from models_for_tests import ResNet, calibrated, images, randomize
from reconstruction_for_tests import joint, run, weights
from torch import nn

from mmquant.quantizers import UniformAffineQuantizer
from mmquant.reconstruction import ElementMix
from mmquant.reconstruction.problem import Comparison, Problem
from mmquant.reconstruction.terms import UnitLoss
from mmquant.utils.contexts import seeded

RATES = dict(rounding=1e-2, activation_scale=1e-3)


def resnet(**cfg):
    return calibrated(randomize(ResNet()), images(40, 3, 8, 8), chunk=16, **dict(dict(w_bits=3, a_bits=3), **cfg))


def state(context) -> dict:
    return {n: t.clone() for n, t in context.model.architecture.state_dict().items()}


def codes(context) -> dict:
    return {n: q.codes.clone() for n, q in context.model.weight_quantizers().items() if q.codes is not None}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def mixed(quant_prob=0.5, inside=True, num_iters=10, best=None, **more):
    settings = dict(type='mmquant.ElementMix', quant_prob=quant_prob, inside=inside)
    return run(resnet(), joint(RATES, num_iters=num_iters, inputs=settings, best=best, **more))


def no_mix(model) -> bool:
    return all(q.mix is None for q in (*model.activation_quantizers().values(), *model.weight_quantizers().values()))


@pytest.mark.parametrize('inside', [False, True])
def test_always_quantized_is_joint_training_to_the_bit(inside):
    plain = run(resnet(), joint(RATES, num_iters=10))
    full = mixed(1, inside)
    assert same(state(plain), state(full)) and plain.records == full.records


def test_never_quantized_at_the_input_is_the_float_input_to_the_bit():
    """Only choosing differs: held-out rows come from the quantized prefix, whatever was mixed."""
    last = dict(choose=False)
    exact = run(resnet(), joint(RATES, num_iters=10, inputs='float', best=last))
    assert same(state(exact), state(mixed(0, False, best=last)))


def test_never_quantized_anywhere_learns_roundings_as_with_float_activations():
    last = dict(choose=False)
    plain = run(resnet(), weights(num_iters=10, lr=1e-2, inputs='float', best=last, hooks=dict(
        stem=None, keep_best=dict(type='mmquant.KeepBest', choose=False))))
    assert same(codes(plain), codes(mixed(0, True, best=last)))


def test_masks_inside_change_what_is_learnt_and_are_reproducible():
    torch.manual_seed(0)
    once = mixed()
    torch.manual_seed(99)
    again, outside = mixed(), mixed(inside=False)
    assert same(state(once), state(again)) and not same(state(once), state(outside))


def test_nothing_is_mixed_after_the_fit():
    context, x = mixed(), images(8, 3, 8, 8)
    with torch.no_grad():
        assert no_mix(context.model) and torch.equal(context.model(x), context.model(x))


def test_nothing_is_mixed_after_an_exception(monkeypatch):
    seen = []

    def broken(self, prediction, target, channel_dim, importance=None):
        seen.append(1)
        raise RuntimeError('stopped')

    context = resnet()
    original = UnitLoss.loss
    monkeypatch.setattr(UnitLoss, 'loss', lambda self, p, *a: broken(self, p, *a) if p.requires_grad
                        else original(self, p, *a))
    with pytest.raises(RuntimeError, match='stopped'):
        run(context, joint(RATES, num_iters=3, inputs=dict(type='mmquant.ElementMix', inside=True)))
    assert seen and no_mix(context.model)
    assert all(q.rounding is None for q in context.model.weight_quantizers().values())
    assert not any(t.requires_grad for m in context.model.modules() for t in (*m.parameters(False), *m.buffers(False)))


def test_held_out_losses_are_never_mixed():
    """Rates of next to nothing: what is measured before and after is the same, and that of joint training."""
    rates = dict(rounding=1e-30, activation_scale=1e-30)
    plain, dropped = (run(resnet(), joint(rates, num_iters=10, **more)) for more in (
        {}, dict(inputs=dict(type='mmquant.ElementMix', inside=True))))
    for a, b in zip(plain.records, dropped.records, strict=True):
        if a['kind'] == 'unit':
            assert (a['held_nearest'], a['held_tuned']) == (b['held_nearest'], b['held_tuned'])
            assert a['loss'] != b['loss'] or a['unit'] == 'conv1'  # the stem's input is the image, not quantized


# ---- one quantizer -------------------------------------------------------------------------------------------------
def quantizer(bits=2):
    found = UniformAffineQuantizer(bits)
    found.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    return found


def test_masks_of_input_and_inside_are_independent():
    """The share of each of the four cases is that of two independent masks."""
    act, x, mix = quantizer(), images(200, 100), ElementMix(0.5, inside=True)
    act.mix = mix.within
    with seeded(0, torch.device('cpu')):
        first = mix(x + 10, x) > 5
        second = act(x) != x
    quantizable = quantizer()(x) != x
    both = (first & second)[quantizable].float().mean().item()
    assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / quantizable.sum().item())**0.5)


def test_dropped_elements_pass_the_whole_gradient_and_give_the_scale_none():
    act, x = quantizer(), images(64, 64).mul(2).requires_grad_()
    act.scale.requires_grad_(True)
    act.mix = ElementMix(0.5, inside=True).within
    with seeded(0, torch.device('cpu')):
        y = act(x)
    dropped = y == x
    clipped = x.detach().abs() > 1.7
    y[dropped].sum().backward(retain_graph=True)
    assert act.scale.grad is None or act.scale.grad.item() == 0
    assert torch.equal(x.grad, dropped.float()) and (dropped & clipped).any()
    x.grad = None
    y[~dropped & clipped].sum().backward()
    assert not x.grad[~dropped & clipped].any() and act.scale.grad.abs().item() > 0


# ---- closed form ----------------------------------------------------------------------------------------------------
def test_linear_unit_learns_the_ridge_solution():
    """Dropping at the input adds the mean squared quantization error of each input, times p (1 - p), to the diagonal.

        w* = argmin E |w x~ - y|^2 = (p (1 - p) diag(E[(x_q - x)^2]) + E[m m^T])^-1 E[m y],  m = p x_q + (1 - p) x
    """
    p, generator = 0.5, torch.Generator().manual_seed(0)
    x = torch.randn(4096, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    rough = (x * 0.4).round() / 0.4
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    mean = p * rough + (1 - p) * x
    moment = p * (1 - p) * (rough - x).square().mean(0).diag() + mean.T @ mean / len(x)
    expected = torch.linalg.solve(moment, mean.T @ y / len(x))
    weight = torch.zeros(4, 1, requires_grad=True)
    rows = torch.arange(len(x))
    problem = Problem(lambda data: data @ weight, {'quant': rough, 'float': x},
                      (Comparison(UnitLoss().loss, y, 1), ), rows, rows, x.device, mixer=ElementMix(p))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    averaged = torch.zeros(4, 1)
    with seeded(0, x.device):
        for step in range(1500):
            optimizer.zero_grad()
            problem.loss_on(rows).backward()
            optimizer.step()
            averaged += weight.detach() / 500 if step >= 1000 else 0
    torch.testing.assert_close(averaged, expected, rtol=0, atol=0.03)
    plain = torch.linalg.lstsq(mean, y).solution
    assert (plain - expected).abs().max() > 0.1  # without the diagonal it is another one


def test_first_and_last_layer_keep_their_bits():
    """Weights of both and the input of the last at 8 bits, as in QDrop's protocol."""
    context = mixed(num_iters=2)
    model = context.model
    wide = {n for n, q in model.weight_quantizers().items() if q.bit_width == 8}
    assert wide == {'conv1', 'fc'} and model.activation_quantizers()['fc.input'].bit_width == 8
    assert isinstance(model.architecture.fc, nn.Linear)
