"""A factor and a bias for each output channel of a quantized layer: the affine layer of RepAPQ's protected convolution.

    y = a * (Q(v) * x + c) + d = (a Q(v)) * x + b_q    with v = w / a_0 and b_q = a c + d

``a`` is the factor, ``a_0`` its initial value, ``*`` between tensors the convolution. A factor of output channels is a
factor of the weight, so the layer stays one convolution and its activations are touched once; ``c`` and ``d`` only
count together. Both act while weights are quantized: the float layer does not know them.
"""
import torch

from mmquant.models.layers import Adapter, QuantizedLayer, own_bias

FLOOR = 1e-6
"""Smallest factor: scales stay positive when it is folded into them."""
SMALLEST_DENSE_SCALE = 1e-4


class OutputAffine(Adapter):
    """Factor of each output channel: quantizes ``w / a_0``, computes with ``a`` times that, ``a`` kept positive.

    Buffers ``scale`` and ``initial_scale`` (C_out,): ``a`` (role ``affine``) and ``a_0``, 1 by default. The bias is the
    layer's ``quantized_bias``. ``weight`` is the layer's; its first axis counts output channels.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.shape = (-1, *[1] * (weight.dim() - 1))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        for name in ('scale', 'initial_scale'):
            self.register_buffer(name, weight.new_ones(weight.shape[0], dtype=dtype))

    @torch.no_grad()
    def start(self, scale: torch.Tensor) -> None:
        """Begin at another factor; values below 1e-4, which would blow up their channel's weights, become 1."""
        scale = torch.where(scale < SMALLEST_DENSE_SCALE, torch.ones_like(scale), scale)
        self.scale.copy_(scale)
        self.initial_scale.copy_(scale)

    def before(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.initial_scale.view(self.shape)

    def after(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scale.view(self.shape).to(weight.dtype)

    def trainables(self) -> dict[str, list[torch.Tensor]]:
        return {'affine': [self.scale]}

    @torch.no_grad()
    def constrain(self) -> None:
        self.scale.clamp_(min=FLOOR)

    def stored_bits(self) -> int:
        """Once decided only ``a`` counts, and nothing when it is folded."""
        return self.scale.numel() * 32 if bool((self.scale != 1).any()) else 0


def add_output_affine(layer: QuantizedLayer) -> None:
    """Give a quantized layer an :class:`OutputAffine` that changes nothing yet, and a bias of its own."""
    weight = layer._parameters['weight'].detach()
    own_bias(layer)
    layer.adapters.append(OutputAffine(weight))


def output_affine_of(layer: QuantizedLayer) -> OutputAffine | None:
    """The layer's output affine, if it has one."""
    return next((x for x in layer.adapters if isinstance(x, OutputAffine)), None)


@torch.no_grad()
def fold_output_affine(layer: QuantizedLayer) -> bool:
    """Move the factor into the weight quantizer's values, codes unchanged; the bias stays.

    False where channels share a scale: the factor then stays as a multiplier of each channel, as in the
    requantization of integer kernels.
    """
    quantizer, affine = layer.weight_quantizer, output_affine_of(layer)
    codes = quantizer.encode(layer.quantized_tensor) if quantizer.codes is None else None
    affine.constrain()
    if not quantizer.rescale(affine.scale):
        return False
    if codes is not None:
        quantizer.set_codes(codes)
    affine.scale.fill_(1)
    affine.initial_scale.fill_(1)
    return True
