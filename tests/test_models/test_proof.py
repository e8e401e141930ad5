"""Float outputs before and after a change: what counts as a difference, and who is told."""
import pytest
import torch
from models_for_tests import ResNet, calibrated, images, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.edits import Edit, PlainMemory
from mmquant.models.reference import change_of


def test_what_counts_as_a_change():
    a, nan = torch.tensor([1.0, -4.0]), torch.tensor([1.0, torch.nan])
    assert change_of([a], [a + torch.tensor([0, 0.04])], 1e-4) == (pytest.approx(0.01), 1e-4)
    assert change_of([nan], [nan.clone()], 1e-4)[0] == 0
    assert change_of([a], [nan], 1e-4)[0] == change_of([nan], [a], 1e-4)[0] == float('inf')
    assert change_of([nan], [torch.tensor([2.0, torch.nan])], 1e-4)[0] == 1
    assert change_of([torch.tensor([1, 2])], [torch.tensor([1, 3])], 1e-4)[0] == 0.5  # nothing else to go by
    assert change_of([a, torch.tensor([1])], [a, torch.tensor([2])], 1e-4)[0] == 0
    assert change_of([a.to(torch.complex64)], [a * 1j], 1e-4)[0] > 0.5
    assert change_of([a.half()], [a.half()], 1e-4)[1] == 8 * 2**-10


class Doubled(Edit):
    """Changes the function."""

    def apply(self, model):
        with torch.no_grad():
            model.layer1[0].conv1.weight.mul_(2)


def test_a_change_is_named():
    model = QuantizedModel(randomize(ResNet()), quantizer_cfg(), 'random')
    with pytest.raises(RuntimeError, match=r'changed the float output.*the first module whose output differs is '
                                           r'layer1\.0\.conv1 \(Conv2d\)'):
        model.edit((Doubled(), ), images(2, 3, 16, 16))


class Random(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.net = randomize(ResNet())
        self.layer1 = self.net.layer1

    def forward(self, x):
        return self.net(x) * torch.rand(())


def test_what_cannot_be_proven_is_a_warning(monkeypatch):
    told = []
    monkeypatch.setattr('mmquant.models.proof.print_log', lambda text, _, level: told.append((text, level)))
    torch.manual_seed(0)
    model = QuantizedModel(Random(), quantizer_cfg(), 'random')
    model.edit((Doubled(), ), images(2, 3, 16, 16))
    (text, level), = told
    assert level == 30 and 'answers the same batch differently each time' in text and 'NOT proven' in text
    assert 'differs is net.layer1.0.conv1' in text


def test_outputs_that_are_all_zero_show_nothing(monkeypatch):
    told = []
    monkeypatch.setattr('mmquant.models.proof.print_log', lambda text, _, level: told.append((text, level)))
    net = randomize(ResNet())
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    model, x = QuantizedModel(net, quantizer_cfg(), 'random'), images(2, 3, 16, 16)
    model.fold_batch_norm(x)
    assert told == []
    model.edit((Doubled(), ), x)
    assert told[0][1] == 30 and 'NOT proven: the first module whose own output changed is layer1.0.conv1' in told[0][0]


@torch.no_grad()
def test_the_original_is_remembered_before_the_first_change():
    net, x = randomize(ResNet()), images(4, 3, 16, 16)
    net.to(memory_format=torch.channels_last)
    expected = net(x)
    model = QuantizedModel(net, quantizer_cfg(), 'random')
    model.remember([(x, None)])
    torch.testing.assert_close(model.reference.outputs[0][0], expected)
    kept = model.reference
    model.fold_batch_norm(x[:2])
    model.remember([(x * 2, None)])
    assert model.reference is kept and net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


class ReadsMemory(nn.Module):
    """Reads a weight in the order of its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        flat = self.conv.weight.as_strided((108, ), (1, ))
        return self.conv(x) * flat[:4].view(1, 4, 1, 1)


@torch.no_grad()
def test_a_layout_in_memory_that_changes_outputs_is_taken_back(tmp_path):
    torch.manual_seed(0)
    net, x = ReadsMemory().eval(), images(2, 3, 8, 8)
    expected = net(x)
    model = calibrated(net, x, w_bits=8, a_bits=8, overrides=()).model
    assert model.plan.edits[0] == PlainMemory()
    with model.quantization(False, False):
        torch.testing.assert_close(model(x), expected)
    model.decide()
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(ReadsMemory(), model.quantizer_cfg, 'random')
    other.load(str(tmp_path / 'q.pth'))
    assert torch.equal(other(x), model(x))
