"""Captured training steps against ordinary ones; skipped without a GPU."""
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import images

from mmquant.losses import LpLoss
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.reconstruction import RoundingRegularizer
from mmquant.reconstruction import fit as module
from mmquant.reconstruction.fit import Pushes, fit
from mmquant.reconstruction.optimizers import ParamGroup, Training
from mmquant.reconstruction.problem import Comparison, Problem
from mmquant.roundings import AdaRound

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def problem_of(forward, x, y, rows):
    return Problem(forward, dict(quant=x), (Comparison(LpLoss(), y, 1), ), rows, rows, x.device)


def fitted(steps):
    """Rounding variables of a linear layer after some steps, and the loss."""
    x, weight = images(64, 24).cuda(), images(16, 24, seed=1).cuda()
    quantizer = UniformAffineQuantizer(3, granularity='channel').cuda()
    quantizer.allocate(weight.shape)
    quantizer.set_range(*weight.aminmax(dim=1))
    rounding = AdaRound()
    rounding.start(weight, quantizer)
    rows = torch.arange(64)
    problem = problem_of(lambda data: data @ rounding().T, x, x @ weight.T, rows)
    groups = [ParamGroup(list(rounding.parameters()), Training(1e-2, 'cosine'))]
    of_one = SimpleNamespace(variables=SimpleNamespace(roundings=dict(a=rounding)))
    windows = dict(late=RoundingRegularizer(warmup=0.3), early=RoundingRegularizer(warmup=0.0, until=0.5))
    loss = fit(problem, groups, steps, 16, 0, Pushes(windows, of_one, steps))
    return rounding.v.detach().clone(), loss


def test_a_captured_step_is_the_same_step(monkeypatch):
    captured, loss = fitted(60)
    monkeypatch.setattr(module.GraphedUpdate, '_capture', lambda self, active: setattr(self, 'usable', False))
    ordinary, expected = fitted(60)
    torch.testing.assert_close(captured, ordinary, rtol=1e-3, atol=1e-3)
    assert loss == pytest.approx(expected, rel=1e-3)


def test_what_cannot_be_captured_runs_ordinarily(caplog):
    x = images(32, 4).cuda()
    guess = torch.zeros(4, 1, device='cuda', requires_grad=True)

    def forward(data):
        assert torch.isfinite(data).all().item()  # waits for the device
        return data @ guess

    rows = torch.arange(32)
    problem = problem_of(forward, x, x @ torch.ones(4, 1, device='cuda'), rows)
    fit(problem, [ParamGroup([guess], Training(0.1, 'cosine'))], 300, 16, 0)
    torch.testing.assert_close(guess.detach().cpu(), torch.ones(4, 1), rtol=0, atol=1e-2)
