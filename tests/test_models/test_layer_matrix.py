import copy

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import images
from torch import nn

from mmquant.models.layer_matrix import LayerMatrix
from mmquant.models.layers import output_axis, quantize_layer
from mmquant.quantizers import UniformAffineQuantizer

LAYERS = {
    'plain': (nn.Conv2d(8, 6, 3, padding=1), (3, 8, 7, 5)),
    'groups of 2': (nn.Conv2d(8, 6, 3, padding=1, groups=2), (3, 8, 7, 5)),
    'groups of 4': (nn.Conv2d(8, 12, (3, 1), stride=(2, 1), groups=4), (3, 8, 7, 5)),
    'depthwise': (nn.Conv2d(8, 8, 3, 2, 1, groups=8), (3, 8, 7, 5)),
    'depthwise, two outputs each': (nn.Conv2d(8, 16, 3, padding=2, groups=8), (3, 8, 7, 5)),
    '1x1': (nn.Conv2d(8, 6, 1, bias=False), (3, 8, 7, 5)),
    'strided 1x1': (nn.Conv2d(8, 6, 1, 2), (3, 8, 7, 5)),
    'dilated': (nn.Conv2d(8, 6, 3, padding=2, dilation=2), (3, 8, 7, 5)),
    'same': (nn.Conv2d(8, 6, (4, 3), padding='same', dilation=(1, 2)), (3, 8, 7, 9)),
    'valid': (nn.Conv2d(8, 6, 3, padding='valid'), (3, 8, 7, 5)),
    'reflected': (nn.Conv2d(8, 6, 3, padding=1, padding_mode='reflect'), (3, 8, 7, 5)),
    'one image without its axis': (nn.Conv2d(8, 6, 3), (8, 7, 5)),
    'one dimension': (nn.Conv1d(4, 6, 3, 2, 1, groups=2), (3, 4, 9)),
    'three dimensions': (nn.Conv3d(4, 6, (1, 3, 2), (1, 2, 1), (0, 1, 1), groups=2), (2, 4, 3, 5, 4)),
    'transposed': (nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1), (3, 8, 4, 5)),
    'transposed, groups, dilated': (nn.ConvTranspose2d(8, 6, (2, 3), (3, 2), groups=2, dilation=(1, 2)), (2, 8, 4, 5)),
    'transposed, one dimension': (nn.ConvTranspose1d(4, 6, 4, 2, 3), (2, 4, 9)),
    'transposed, three dimensions': (nn.ConvTranspose3d(4, 6, (1, 3, 2), (1, 2, 1), groups=2), (2, 4, 3, 2, 4)),
    'linear': (nn.Linear(6, 4), (5, 6)),
    'linear on tokens': (nn.Linear(6, 4, bias=False), (3, 5, 6)),
    'linear, channels last': (nn.Linear(6, 4), (2, 3, 5, 6)),
}


class AdaptivePadding(nn.Conv2d):
    """As mmcv's Conv2dAdaptivePadding: pads by the size of the input."""

    def forward(self, x):
        pad = [max((-(-size // 2) - 1) * 2 + 3 - size, 0) for size in x.shape[-2:]]
        x = F.pad(x, [pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


LAYERS['adaptive padding'] = AdaptivePadding(8, 6, 3, 2, groups=2), (3, 8, 7, 6)


def product(matrix: LayerMatrix, rows, weight, shape):
    """``rows @ matrix(weight).T``, blocks of columns summed up, as an output of ``shape``."""
    found = (rows @ matrix.matrix(weight).mT).unflatten(0, (-1, matrix.blocks)).sum(1)  # (groups, m, R)
    axis = output_axis(matrix.layer) % len(shape)
    places = [size for dim, size in enumerate(shape) if dim != axis]
    return found.transpose(0, 1).reshape(*places, -1).movedim(-1, axis)


def without_bias(layer, x):
    bias, layer.bias = layer.bias, None
    try:
        return layer(x).detach()
    finally:
        layer.bias = bias


@pytest.mark.parametrize('max_columns', [None, 4])
@pytest.mark.parametrize('name', LAYERS)
def test_rows_times_matrix_is_the_output_without_bias(name, max_columns):
    layer, shape = LAYERS[name]
    layer, x = layer.double(), images(*shape).double()
    matrix = LayerMatrix(layer, max_columns)
    output = without_bias(layer, x)
    output = output[None] if name == 'one image without its axis' else output
    rows = matrix.rows(x)
    assert rows.shape[::2] == (matrix.groups, matrix.columns) and matrix.columns <= (max_columns or 999)
    torch.testing.assert_close(product(matrix, rows, layer.weight, output.shape), output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', LAYERS)
def test_tensor_is_the_inverse_of_matrix_and_rows_come_in_pieces(name):
    layer, shape = LAYERS[name]
    layer, x = layer.double(), images(*shape).double()
    for matrix in (LayerMatrix(layer), LayerMatrix(layer, 3)):
        weight = layer.weight.detach()
        assert torch.equal(matrix.tensor(matrix.matrix(weight)), weight)
        seen = []
        with matrix.caught(seen.append):
            layer(x)
        pieces = list(matrix.pieces(seen[0], limit=20))
        assert len(seen) == 1 and len(pieces) > 1
        torch.testing.assert_close(torch.cat(pieces, 1), matrix.rows(x), rtol=0, atol=0)


def test_blocks_of_columns():
    assert LayerMatrix(nn.Linear(12, 2), 6).blocks == 2
    assert LayerMatrix(nn.Linear(7, 2), 6).blocks == 7  # no other number divides
    grouped = LayerMatrix(nn.Conv2d(8, 6, 3, groups=2), 20)
    assert (grouped.groups, grouped.blocks, grouped.columns) == (4, 2, 18)


@pytest.mark.parametrize('name', ['plain', 'transposed', 'linear on tokens', 'adaptive padding'])
def test_rows_of_a_quantized_layer_are_behind_its_input_quantizer(name):
    layer, shape = LAYERS[name]
    layer, x = copy.deepcopy(layer).float(), images(*shape)
    quantizers = [UniformAffineQuantizer(4), UniformAffineQuantizer(3)]
    for quantizer in quantizers:
        quantizer.set_range(-2.0, 2.0)
    quantize_layer(layer, *quantizers)
    with torch.no_grad():
        output, bias = layer(x), layer._parameters.pop('bias')
        layer._parameters['bias'] = None
        output = layer(x)
        layer._parameters['bias'] = bias
        weight = quantizers[0](layer._parameters['weight'])
    matrix = LayerMatrix(layer)
    rows = matrix.rows(x)
    assert len(rows.unique()) <= 8
    torch.testing.assert_close(product(matrix, rows, weight, output.shape), output, rtol=1e-5, atol=1e-5)


def test_a_weight_made_anew_in_forward_is_what_the_rows_meet():
    class Standardised(nn.Conv2d):

        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    layer, x = Standardised(4, 3, 3, padding=1, bias=False), images(2, 4, 5, 5)
    matrix = LayerMatrix(layer)
    weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(product(matrix, matrix.rows(x), weight, (2, 3, 5, 5)), layer(x))


def test_a_layer_without_rows():
    class Deformable(nn.Conv2d):

        def forward(self, x):
            return x * self.weight.mean()

    with pytest.raises(ValueError, match='Deformable has no rows to solve for: no image reached it, or it does not'):
        LayerMatrix(Deformable(3, 3, 3)).rows(images(1, 3, 4, 4))
