"""Captured training steps against ordinary ones; skipped without a GPU."""
import pytest
import torch
from models_for_tests import images

from mmquant.losses import LpLoss
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.reconstruction import training as module
from mmquant.reconstruction.training import ParamGroup, Problem, RoundingSchedule, fit
from mmquant.roundings import AdaRound

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def fitted(steps):
    """Rounding variables of a linear layer after some steps, and the loss."""
    x, weight = images(64, 24).cuda(), images(16, 24, seed=1).cuda()
    quantizer = UniformAffineQuantizer(3, granularity='channel').cuda()
    quantizer.allocate(weight.shape)
    quantizer.set_range(*weight.aminmax(dim=1))
    rounding = AdaRound()
    rounding.start(weight, quantizer)
    rows = torch.arange(64)
    problem = Problem(lambda data: data @ rounding().T, x, x @ weight.T, None, LpLoss(), 1, rows, rows, x.device)
    groups = [ParamGroup(list(rounding.parameters()), 1e-2, cosine=True)]
    loss = fit(problem, groups, steps, 16, 0, RoundingSchedule(warmup=0.3), [rounding])
    return rounding.v.detach().clone(), loss


def test_a_captured_step_is_the_same_step(monkeypatch):
    captured, loss = fitted(60)
    monkeypatch.setattr(module.GraphedUpdate, '_capture', lambda self, regularized: setattr(self, 'usable', False))
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
    problem = Problem(forward, x, x @ torch.ones(4, 1, device='cuda'), None, LpLoss(), 1, rows, rows, x.device)
    fit(problem, [ParamGroup([guess], 0.1, cosine=True)], 300, 16, 0)
    torch.testing.assert_close(guess.detach().cpu(), torch.ones(4, 1), rtol=0, atol=1e-2)
