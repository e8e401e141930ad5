"""Small models and helpers that several tests share."""
import contextlib
import copy
import resource

import torch
import torch.nn.functional as F
from torch import nn

from mmquant.algorithms import CalibrationContext, FoldBatchNorm, InitActivationRange, InitWeightRange, InsertQuantizers
from mmquant.calibration.unit_inputs import UnitInput, UnitInputBuilder
from mmquant.models import QuantizedModel
from mmquant.models.dataflow import DataFlow
from mmquant.models.folding import candidates
from mmquant.models.packed_state import grow, shrink
from mmquant.models.recorder import record

FIRST_LAST_8 = (dict(position='first', w_bits=8, out_bits=8), dict(position='last', w_bits=8, in_bits=8))
MIN_MAX = dict(type='mmquant.MinMaxObserver')


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Reproducible weights and biases, statistics and affine parameters of BatchNorms as after training; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for x, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5),
                               (module.running_var, 0.5)):
                    x.copy_(torch.rand(x.shape, generator=generator) + low)
            elif hasattr(module, 'weight') and isinstance(module.weight, nn.Parameter) and module.weight.dim() > 1:
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in)**0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
    model.eval()  # of mmpretrain's backbones, returns None
    return model


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_of(model: nn.Module, x) -> DataFlow:
    """Data flow of a plain model."""
    return record(model.eval(), lambda inputs: model(inputs), x)


class BasicBlock(nn.Module):
    """The residual block of ResNets: one shared in-place ReLU, an in-place add."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem with max pooling, two stages of two blocks, global pooling, a linear head."""

    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(width, width), BasicBlock(width, width))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2 * width, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(self.avgpool(x).flatten(1))


class Chain(nn.Module):
    """Convolutions one after another, functional ReLU in between."""

    def __init__(self, depth: int = 3, width: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, 1, 1) for i in range(depth))
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.mean((2, 3)))


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention by ``q @ k`` or by PyTorch's fused function."""

    def __init__(self, dim: int = 8, heads: int = 2, fused: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.fused, self.causal = heads, fused, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            out = (q @ k.transpose(-2, -1) * q.shape[-1]**-0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward parts, each with a residual add."""

    def __init__(self, dim: int = 8, fused: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, fused=fused)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class ViT(nn.Module):
    """Patch embedding, transformer layers, mean over tokens, head."""

    def __init__(self, dim: int = 8, depth: int = 2, fused: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.layers = nn.ModuleList(TransformerLayer(dim, fused) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def quantizer_cfg(w_bits=4, a_bits=4, overrides=FIRST_LAST_8, **more) -> dict:
    return dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=w_bits, granularity='channel'),
                activation=dict(type='mmquant.UniformAffineQuantizer', bits=a_bits), overrides=list(overrides), **more)


def inserted(model: nn.Module, x: torch.Tensor, chunk: int = 8, copied: bool = True, **cfg) -> CalibrationContext:
    """A folded model with quantizers that have no range yet; ``cfg`` goes to :func:`quantizer_cfg`."""
    model = QuantizedModel(copy.deepcopy(model) if copied else model, quantizer_cfg(**cfg), 'random')
    context = CalibrationContext(model, list(x.split(chunk)), progress=silent)
    FoldBatchNorm().run(context)
    InsertQuantizers().run(context)
    return context


def calibrated(model: nn.Module, x: torch.Tensor, chunk: int = 8, **cfg) -> CalibrationContext:
    """As :func:`inserted`, with min-max ranges: nearest rounding."""
    context = inserted(model, x, chunk, **cfg)
    InitWeightRange(observer=MIN_MAX).run(context)
    if context.model.activation_quantizers():
        InitActivationRange(observer=MIN_MAX, num_images=len(x)).run(context)
    return context


def change_quantized(path, **new) -> str:
    """Write another ``plan``, ``meta``, ``entries``, ... into a quantized checkpoint; returns the path."""
    data = torch.load(path, weights_only=True)
    torch.save(dict(data, about=shrink(dict(grow(data['about']), **new))), path)
    return str(path)


def advance(stream, unit, pending=frozenset()) -> list:
    """(args, kwargs) of the calls of ``unit``: all of a chunk, then the next chunk's."""
    return [arguments for _, _, arguments in stream.walk(unit, pending)]


def joined(arguments) -> UnitInput:
    """The (args, kwargs) of several chunks as the input of one call."""
    builder = UnitInputBuilder()
    for chunk in arguments:
        builder.add(chunk)
    return builder.build()


class silent:  # noqa: N801
    """Progress that shows nothing."""

    def __init__(self, description: str, total: int) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def update(self, done: int, text: str = '') -> None:
        pass


@contextlib.contextmanager
def full_disk(size: int):
    """No file of this process may grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def foldable_pairs(model, flow):
    """Pairs (layer, BatchNorm) that can be folded."""
    return [(layer, bn) for layer, bn, why in candidates(model, flow) if not why]
