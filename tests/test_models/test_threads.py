"""Several threads may run one quantized model: what belongs to a call stays with its thread."""
import sys
import threading

import pytest
import torch
from models_for_tests import calibrated, images, randomize
from torch import nn

from mmquant.models.layers import PerCall
from mmquant.quantizers import UniformAffineQuantizer


class Attention(nn.Module):

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.matmul(torch.matmul(q, k.transpose(-2, -1)).softmax(-1), v))


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


NETS = dict(convolutions=(lambda: nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)]), (2, 4, 6, 6)),
            attention=(lambda: nn.Sequential(Attention(), nn.ReLU(), Attention()), (2, 5, 8)))


@pytest.mark.parametrize('kind', NETS)
def test_no_thread_reads_float_weights(kind):
    make, shape = NETS[kind]
    x = images(*shape)
    model = calibrated(randomize(make()), x, w_bits=3, a_bits=8).model
    wrong, threads = [], []
    with torch.no_grad():
        wanted = model(x)
        with model.quantization(weights=False, activations=False):
            assert (model(x) - wanted).abs().max() > 0.01

    @torch.no_grad()
    def work():
        for _ in range(100):
            wrong.append(not torch.equal(model(x), wanted))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(wrong) == 400 and not any(wrong)


def test_calls_are_counted_by_thread():
    calls = PerCall([UniformAffineQuantizer(8), UniformAffineQuantizer(8)])
    for quantizer, end in zip(calls, (1.0, 2.0)):
        quantizer.set_range(torch.tensor(0.0), torch.tensor(end))
    found = []
    calls(torch.ones(1))
    thread = threading.Thread(target=lambda: found.append(calls(torch.full((1, ), 5.0)).item()))
    thread.start(), thread.join()
    assert found == [pytest.approx(1.0)] and calls(torch.full((1, ), 5.0)).item() == pytest.approx(2.0)


@torch.no_grad()
def test_weights_fixed_by_one_thread_are_fixed_for_all():
    x = images(2, 4, 6, 6)
    model = calibrated(randomize(NETS['convolutions'][0]()), x, w_bits=3, a_bits=8).model
    wanted, found = model(x), []
    with model.frozen(True, True):
        def run():
            with torch.no_grad():
                found.append(model(x))
        thread = threading.Thread(target=run)
        thread.start(), thread.join()
    assert torch.equal(found[0], wanted)
