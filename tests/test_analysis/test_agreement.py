"""The end line of a run: compared with the original float model, not with what became of it."""
import math

import pytest
import torch
from models_for_tests import ResNet, calibrated, images, randomize

from mmquant.analysis.agreement import agreement, agreement_line
from mmquant.utils.files import read_json, write_json


@torch.no_grad()
def test_numbers_are_those_of_the_original():
    net, x = randomize(ResNet()), images(40, 3, 16, 16)
    expected = net(x)[:8]
    model = calibrated(net, x, w_bits=4, a_bits=4).model
    out = model(x[:8])
    found = agreement(model)
    assert found['images'] == 32 and found['reference'] == 'original'
    assert [len(b[0]) for b in model.reference.batches] == [8, 8, 8, 8]
    torch.testing.assert_close(model.reference.outputs[0][0], expected)
    full = net(x[:32])
    noise = (full - model(x[:32])).square().sum()
    assert found['sqnr_db'] == pytest.approx(10 * math.log10(full.square().sum() / noise), abs=0.01)
    assert found['top1_agreement'] == (full.argmax(1) == model(x[:32]).argmax(1)).float().mean()
    assert torch.equal(model(x[:8]), out) and 0 < found['sqnr_db'] < 40


@torch.no_grad()
def test_a_change_that_spoils_the_float_net_shows():
    net, x = randomize(ResNet()), images(8, 3, 16, 16)
    model = calibrated(net, x, w_bits=8, a_bits=8).model
    assert agreement(model)['sqnr_db'] > 20
    for layer in model.quantized_layers().values():  # the float mode too
        layer._parameters['weight'].mul_(0.5)
    assert agreement(model)['sqnr_db'] < 10


def test_without_an_original():
    model = calibrated(randomize(ResNet()), x := images(8, 3, 16, 16), w_bits=8, a_bits=8).model
    model.reference = None
    with pytest.raises(ValueError, match='give images'):
        agreement(model)
    assert agreement(model, [x])['reference'] == 'float mode'


@pytest.mark.parametrize('bias, sqnr, text', [
    (1.0, math.inf, ': no difference, top-1 agreement 100.0%'),
    (0.0, math.nan, ': no SQNR (outputs that are all zero or not finite), top-1 agreement 100.0%')])
def test_nothing_differs_or_nothing_is_there(tmp_path, bias, sqnr, text):
    """Neither has an SQNR: the line says so, and the file is strict JSON."""
    net = randomize(ResNet())
    torch.nn.init.zeros_(net.fc.weight), torch.nn.init.constant_(net.fc.bias, bias)
    found = agreement(calibrated(net, images(8, 3, 16, 16)).model)
    assert repr(found['sqnr_db']) == repr(sqnr) and agreement_line(found).endswith(text)
    path = write_json(tmp_path / 'results.json', dict(agreement=found))
    assert read_json(path)['agreement'] == dict(found, sqnr_db=None)
