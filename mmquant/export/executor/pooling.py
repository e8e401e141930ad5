"""Average pools on codes. Maximum pools keep the codes and need no kernel.

ONNX Runtime's QLinearAveragePool is float inside: rint((sum of f32((q - z_x) s_x) in the order of the window) / n / s_y
+ z_y), with the zero point added before rounding. Its global pool sums integers.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from mmquant.export.executor.arithmetic import Arithmetic
from mmquant.export.executor.graph_view import Node
from mmquant.export.executor.values import Quantized, Target


def global_average_pool(node: Node, values: list[Quantized], target: Target, arithmetic: Arithmetic) -> Tensor:
    """Codes (N, C, 1, ...): round(sum (q - z_x) s_x / (s_y n)) + z_y."""
    x, = values
    axes = list(range(2, x.codes.dim()))
    acc = x.centred().sum(axes, keepdim=True)
    arithmetic.record(node.name, acc)
    count = torch.tensor(float(x.codes[0, 0].numel()))
    return target.codes(arithmetic.rescale(acc, [x.scale.reshape(())], [target.scale, count]))


def average_pool(node: Node, values: list[Quantized], target: Target, arithmetic: Arithmetic) -> Tensor:
    """Codes (N, C, H, W); the count leaves out the padding unless ``count_include_pad``."""
    x, = values
    windows = _windows(x.centred(), node)
    count = _windows(torch.ones_like(x.codes[:1, :1], dtype=torch.int64), node,
                     fill=node.attributes.get('count_include_pad', 0)).sum(-1).float()
    if arithmetic.mode != 'ort':
        acc = windows.sum(-1)
        arithmetic.record(node.name, acc)
        return target.codes(arithmetic.rescale(acc, [x.scale.reshape(())], [target.scale, count]))
    total = torch.zeros(windows.shape[:-1])
    for tap in (windows.float() * x.scale.reshape(())).unbind(-1):
        total = total + tap
    real = total / count / target.scale + target.zero.float()
    return real.round_().clamp_(target.low, target.high).to(target.zero.dtype)


def pools_plainly(node: Node) -> bool:
    """Two spatial axes, no ceil mode, dilation or automatic padding: what :func:`average_pool` covers."""
    plain = dict(ceil_mode=0, auto_pad=b'NOTSET', dilations=[1, 1])
    return len(node.attributes['kernel_shape']) == 2 and all(
        node.attributes.get(key, value) == value for key, value in plain.items())


def _windows(x: Tensor, node: Node, fill: int = 0) -> Tensor:
    """(N, C, H, W, taps), the taps in order of rows."""
    kernel, strides = node.attributes['kernel_shape'], node.attributes.get('strides', [1, 1])
    top, left, bottom, right = node.attributes.get('pads', [0] * 4)
    x = F.pad(x, (left, right, top, bottom), value=fill)
    return x.unfold(2, kernel[0], strides[0]).unfold(3, kernel[1], strides[1]).flatten(4)
