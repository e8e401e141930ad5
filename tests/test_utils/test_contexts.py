"""Passes that a library gets wrong are kept from it, and no others."""
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmquant.utils.contexts import sound_gradients

# glibc ends a process at the first damage to its heap, instead of somewhere later
CODE = """
import torch
from models_for_tests import ResNet, calibrated, images, randomize
from reconstruction_for_tests import run, weights
context = calibrated(randomize(ResNet()), images(40, 3, 16, 16))
run(context, weights(num_iters=40, batch_size=8))
print(torch.backends.mkldnn.enabled, [r["kept"] for r in context.records if r.get("unit") == "layer2.0"])
"""


def test_a_narrow_projection_does_not_end_the_process():
    """The shortcut of layer2.0 has 4 input channels, a 1x1 kernel and a stride of 2."""
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, timeout=300, env=dict(
        os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)), MALLOC_CHECK_='3'))
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.splitlines()[-1] in ("True ['tuned']", "True ['nearest']")


@pytest.mark.parametrize('layer, switched', [
    (nn.Conv2d(4, 8, 1, 2), True), (nn.Conv2d(32, 8, 1, 2, groups=8), True), (nn.Conv2d(16, 32, 1, 2), False),
    (nn.Conv2d(4, 8, 1), False), (nn.Conv2d(4, 8, 3, 2), False)])
def test_others_keep_the_fast_way(monkeypatch, layer, switched):
    monkeypatch.setattr(torch.backends.mkldnn, 'enabled', True)
    with sound_gradients(nn.Sequential(layer)):
        assert torch.backends.mkldnn.enabled is not switched
    assert torch.backends.mkldnn.enabled
