"""Uniform affine quantizer: ``scale * (clip(round(x / scale) + zero_point, q_min, q_max) - zero_point)``."""

import torch
from torch import Tensor

from mmquant.ops import affine_parameters, dequantize, fake_quantize, quantize
from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity, IntegerGrid, build_granularity

from .quantizer import Quantizer


@QUANTIZERS.register_module()
class UniformAffineQuantizer(Quantizer):
    """Evenly spaced levels, one scale and zero point per tensor, channel or group.

    Args:
        bits: Bit width, 2..16. Default: 8.
        symmetric: Signed grid with zero point 0 instead of an unsigned grid with a zero point. Default: False.
        granularity: ``'tensor'``, ``'channel'``, ``'group'``, or what ``build_granularity`` takes. Default: tensor.
        channel_axis: Axis of ``'channel'`` and ``'group'``. Default: 0.
        group_size: Elements per group of ``'group'``.
        keep_mean: Bias correction of weights: each channel gets back what rounding took from its mean, so its values
            are the grid's plus one offset a channel (:meth:`offset`). Default: False.

    Attributes:
        codes: Integer buffer of the weight's shape once the rounding is decided (``set_codes``), else None. While
            present, ``forward`` returns ``decode(codes)``, whatever the float weight.
        rounding: A ``Rounding`` while one is being learned, else None. While set, ``forward`` returns ``rounding()``.

    Raises:
        ValueError: Bits outside 2..16, or an unknown granularity.
    """

    def __init__(self, bits: int = 8, symmetric: bool = False, granularity: str | dict | Granularity = 'tensor',
                 channel_axis: int = 0, group_size: int | None = None, keep_mean: bool = False) -> None:
        grid = IntegerGrid(bits, symmetric)
        super().__init__(bits)
        self._grid = grid
        self.channel_axis, self.keep_mean = channel_axis, keep_mean
        self.granularity = build_granularity(granularity, channel_axis, group_size)
        self.register_buffer('codes', None)
        self.rounding = None

    @property
    def grid(self) -> IntegerGrid:
        return self._grid

    def set_bits(self, bits: int) -> None:
        """Change the bit width; codes are dropped, and the range must be set again unless the width is the same."""
        if bits == self._grid.bits:
            return
        self._adopt_bits(bits)
        self.bits.fill_(bits)
        self.clear_codes()
        self.initialized = False

    def allocate(self, shape: tuple[int, ...]) -> None:
        """Make room for the scales of a tensor of ``shape``; forgets the range. One scale needs no call."""
        scale_shape = self.granularity.scale_shape(tuple(shape))
        self.scale = self.scale.detach().new_ones(scale_shape)
        self.zero_point = self.zero_point.detach().new_zeros(scale_shape)
        self.clear_codes()
        self.initialized = False

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover ``[low, high]``; 0 is always included, and an all-zero range gets the smallest scale, 1e-8.

        Args:
            low: Lower ends: one per scale, in the order of ``granularity.to_groups`` or in the shape of ``scale``.
            high: Upper ends, likewise.

        Raises:
            ValueError: The number of ranges is not that of the scales, or a range is not finite or upside down.
        """
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        if low.numel() != self.scale.numel() or high.numel() != self.scale.numel():
            raise ValueError(f'set_range got low of shape {tuple(low.shape)} and high of shape {tuple(high.shape)} for '
                             f'scales of shape {tuple(self.scale.shape)} ({self.granularity}): expected '
                             f"{self.scale.numel()} values each. Call allocate(tensor's shape) before set_range.")
        low, high = low.reshape(self.scale.shape), high.reshape(self.scale.shape)
        if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
            raise ValueError(f'set_range needs finite ranges with low <= high, but got low in {low.min():.4g}..'
                             f'{low.max():.4g} and high in {high.min():.4g}..{high.max():.4g}: look for NaN or Inf in '
                             'the observed tensor.')
        scale, zero_point = affine_parameters(low, high, self._grid)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.initialized = True

    def expanded(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``scale`` and ``zero_point``, broadcastable against a tensor of ``shape``; differentiable in ``scale``."""
        return self.granularity.expand(self.scale, shape), self.granularity.expand(self.zero_point, shape)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x`` by nearest rounding, in ``grid.code_dtype`` (uint8, int8, int16 or int32)."""
        return quantize(x, *self.expanded(x.shape), self._grid.q_min, self._grid.q_max).to(self._grid.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        """Values of ``codes``, in the dtype of ``scale``; differentiable in ``scale``."""
        return dequantize(codes, *self.expanded(codes.shape))

    def set_codes(self, codes: Tensor) -> None:
        """Fix the result of ``forward`` to these codes.

        Args:
            codes: Integer tensor of the weight's shape with values in ``q_min..q_max``.

        Raises:
            ValueError: Not an integer tensor, or values outside the grid.
        """
        low, high = (int(end) for end in codes.aminmax())
        if codes.is_floating_point() or low < self._grid.q_min or high > self._grid.q_max:
            raise ValueError(f'set_codes got {codes.dtype} codes in {low}..{high}: expected integers in '
                             f'{self._grid.q_min}..{self._grid.q_max} ({self._grid.bits} bits), as from encode().')
        self.codes = codes.detach().to(self._grid.code_dtype)

    def clear_codes(self) -> None:
        """Back to nearest rounding of the float tensor."""
        self.codes = None

    def offset(self, x: Tensor) -> Tensor | None:
        """What ``forward`` adds to the grid's values of ``x``: one number a channel, or None without ``keep_mean``."""
        return self._lost_mean(x, self._on_grid(x)) if self.keep_mean else None

    def _lost_mean(self, x: Tensor, x_hat: Tensor) -> Tensor:
        others = [d for d in range(x.dim()) if d != self.channel_axis % x.dim()]
        return (x - x_hat).mean(others, keepdim=True)

    def _forward(self, x: Tensor) -> Tensor:
        x_hat = self._on_grid(x)
        return x_hat + self._lost_mean(x, x_hat) if self.keep_mean else x_hat

    def _on_grid(self, x: Tensor) -> Tensor:
        if self.rounding is not None:
            return self.rounding()
        if self.codes is not None:
            if self.codes.shape != x.shape:
                raise ValueError(f'The quantizer holds codes of shape {tuple(self.codes.shape)} but was given a tensor '
                                 f'of shape {tuple(x.shape)}: call clear_codes() if the weight was replaced.')
            return self.decode(self.codes).to(x.dtype)
        return self._nearest(x)

    def _nearest(self, x: Tensor) -> Tensor:
        return fake_quantize(x, *self.expanded(x.shape), self._grid.q_min, self._grid.q_max)

    def _adopt_bits(self, bits: int) -> None:
        self._grid = IntegerGrid(bits, self._grid.symmetric)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list, unexpected_keys: list, error_msgs: list) -> None:
        codes = state_dict.get(prefix + 'codes')
        if codes is not None:
            self.codes = torch.empty_like(codes, device=self.scale.device)
        elif prefix + 'scale' in state_dict:
            self.codes = None
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)

    def extra_repr(self) -> str:
        state = 'codes' if self.codes is not None else ('range' if self.initialized else 'no range')
        return (f'bits={self._grid.bits}, symmetric={self._grid.symmetric}, granularity={self.granularity}, '
                f'scales={self.scale.numel()}, {state}' + ('' if self.enabled else ', disabled'))
