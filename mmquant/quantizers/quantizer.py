"""From a float tensor to representable values: the contract of all grids."""
from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmquant.ops import positive
from mmquant.structures import Granularity, build_granularity, code_dtype

from .columns import Columns
from .wide import Wide, wide_float

PARAMETER_BITS = 32


class Quantizer(Wide):
    """Maps a tensor to the nearest (or learned) representable values; all state is in buffers.

    A grid says what its values are (``trial``, ``nearest``, ``encode``, ``decode``, ``neighbours``) and which buffers
    hold one value per scale (``per_scale``); whatever else uses a quantizer knows this contract only.

    Args:
        bits: Width of a code.
        granularity: ``'tensor'``, ``'channel'``, ``'group'``, or what ``build_granularity`` takes. Default: tensor.
        channel_axis: Axis of ``'channel'`` and ``'group'``, and of ``keep_mean``. Default: 0.
        group_size: Elements per group of ``'group'``.
        keep_mean: Each channel gets back what rounding took from its mean: one offset per channel. Default: False.

    Attributes:
        enabled: Plain switch, the same for all threads; while False, ``forward`` returns its input unchanged.
        bits, bit_width: Width of a code as a buffer, and as a plain int; change it through ``set_bits`` only.
        codes: Integer buffer once the values are decided, else None. While present, ``forward`` returns
            ``decode(codes)``, whatever the float tensor.
        offset: Buffer, what ``keep_mean`` adds to decided codes, from ``decide``; else None.
        rounding: A ``Rounding`` while one is being learned, else None. While set, ``forward`` returns ``rounding()``.
        mix: ``mix(x_hat, x)`` replaces the result while a unit is fitted, else None; not saved.
    """

    per_scale: ClassVar[dict[str, float]] = {}
    """Buffers with one value per scale, and the values they begin with."""

    def __init__(self, bits: int, granularity: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                 group_size: int | None = None, keep_mean: bool = False) -> None:
        super().__init__()
        self.enabled, self.bit_width = True, bits
        self.rounding: nn.Module | None = None
        self.mix: Callable[[Tensor, Tensor], Tensor] | None = None
        self.channel_axis, self.keep_mean, self.num_channels = channel_axis, keep_mean, 0
        self.granularity = build_granularity(granularity, channel_axis, group_size)
        for name, value in self.per_scale.items():
            self.register_buffer(name, torch.full((), value))
        self.register_buffer('bits', torch.tensor(bits))
        self.register_buffer('_initialized', torch.tensor(False))
        self.register_buffer('codes', None)
        self.register_buffer('offset', None)
        self._ready = False  # mirror of _initialized on the host, so that forward never waits for a device

    # ---- range and width --------------------------------------------------------------------------------------------
    @property
    def initialized(self) -> bool:
        """Whether the quantizer has a range; kept in checkpoints."""
        return self._ready

    @initialized.setter
    def initialized(self, value: bool) -> None:
        self._ready = bool(value)
        self._initialized.fill_(self._ready)

    @property
    def num_scales(self) -> int:
        """How many ranges ``set_range`` takes."""
        return max((getattr(self, name).numel() for name in self.per_scale), default=1)

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return 0, 2**self.bit_width - 1

    def allocate(self, shape: tuple[int, ...], axis: int | None = None) -> None:
        """Make room for a tensor of ``shape`` with channels on ``axis`` (None: as built); forgets range and codes."""
        if axis is not None:
            self.channel_axis, self.granularity = axis, self.granularity.on_axis(axis)
        scale_shape = self.granularity.scale_shape(tuple(shape))
        self.num_channels = shape[self.channel_axis] if len(shape) else 1
        for name, value in self.per_scale.items():
            setattr(self, name, getattr(self, name).detach().new_full(scale_shape, value))
        self.clear_codes()
        self.initialized = False

    def set_bits(self, bits: int) -> None:
        """Change the bit width; codes are dropped, and the range must be set again unless the width is the same."""
        if bits == self.bit_width:
            return
        self._adopt_bits(bits)
        self.bits.fill_(bits)
        self.clear_codes()
        self.initialized = False

    def _adopt_bits(self, bits: int) -> None:
        """Follow a bit width; extended by grids that depend on it, which raise ValueError where they cannot."""
        self.bit_width = bits

    def fit(self, x: Tensor, observer, importance: Tensor | None = None) -> None:
        """Set the range from a whole tensor of the allocated shape by ``Observer.range_of``, which the grid scores."""
        low_high = observer.range_of(x, self, self.granularity, importance)
        self.clear_codes()
        self.set_range(*low_high)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover ``[low, high]``, one per scale in the order of ``granularity.to_groups``, widened to 0.

        Raises:
            ValueError: The number of ranges is not that of the scales, or a range is not finite or upside down.
        """
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        if low.numel() != self.num_scales or high.numel() != self.num_scales:
            raise ValueError(f'set_range got low of shape {tuple(low.shape)} and high of shape {tuple(high.shape)} for '
                             f"{self.granularity}: expected {self.num_scales} values each. Call allocate(tensor's "
                             'shape) before set_range.')
        if not bool((torch.isfinite(high - low) & (low <= high)).all()):  # a range as wide as inf has no scale
            raise ValueError(f'set_range needs finite ranges with low <= high, but got low in {low.min():.4g}..'
                             f'{low.max():.4g} and high in {high.min():.4g}..{high.max():.4g}: look for NaN or Inf in '
                             'the observed tensor.')
        self._adopt_range(low.float().flatten().clamp(max=0), high.float().flatten().clamp(min=0))
        self.initialized = True

    @abstractmethod
    def _adopt_range(self, low: Tensor, high: Tensor) -> None:
        """Fill the buffers; ``low <= 0 <= high``, float32, shape (num_scales,)."""

    @abstractmethod
    def trial(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Values of ``rows`` (num_scales, n) if the ranges (num_scales,) were these; the quantizer does not change."""

    def errors(self, rows: Tensor, low: Tensor, high: Tensor, p: float, importance: Tensor | None = None) -> Tensor:
        """Mean of ``importance * |rows - trial|^p``, p > 0, for K ranges per scale, up to one factor per scale.

        ``rows`` is float32 (num_scales, n), ``low`` and ``high`` (K, num_scales), ``importance`` >= 0 as ``rows``; None
        counts all alike.
        """
        limit = torch.maximum(-low, high).amax(0).clamp(min=torch.finfo(rows.dtype).tiny)[:, None]  # no underflow
        found = torch.empty_like(low)
        for i in range(len(low)):
            error = self.trial(rows, low[i], high[i]).sub_(rows).div_(limit).abs_().pow_(p)
            found[i] = (error if importance is None else error.mul_(importance)).mean(1)
        return found

    # ---- values -----------------------------------------------------------------------------------------------------
    def forward(self, x: Tensor) -> Tensor:
        """Representable values for ``x``, same shape and dtype; ``x`` itself while disabled.

        Raises:
            RuntimeError: Enabled without a range.
            ValueError: Codes of another shape.
        """
        if not self.enabled:
            return x
        if not self._ready:
            raise RuntimeError(f'{type(self).__name__} was given a tensor of shape {tuple(x.shape)} but has no range '
                               'yet: call set_range, load a checkpoint, or set `enabled = False`.')
        wide = wide_float(x) if self.keep_mean else x
        x_hat = self._on_grid(wide)
        if self.keep_mean:
            decided = self.rounding is None and self.offset is not None
            x_hat = (x_hat + (self.offset if decided else self._lost_mean(wide, x_hat))).to(x.dtype)
        return x_hat if self.mix is None else self.mix(x_hat, x)

    def _on_grid(self, x: Tensor) -> Tensor:
        if self.rounding is not None:
            return self.rounding()
        if self.codes is None:
            return self.nearest(x)
        x_hat = self.decode(self.codes).to(x.dtype)
        if x_hat.shape != x.shape:
            raise ValueError(f'The quantizer holds codes of shape {tuple(self.codes.shape)} but was given a tensor of '
                             f'shape {tuple(x.shape)}: call clear_codes() if the weight was replaced.')
        return x_hat

    def _lost_mean(self, x: Tensor, x_hat: Tensor) -> Tensor:
        others = [d for d in range(x.dim()) if d != self.channel_axis % x.dim()]
        return (x - x_hat).mean(others, keepdim=True)

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """Nearest representable values; straight-through gradient for ``x``, a gradient for :meth:`trainables`."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Integer codes of ``x`` by nearest rounding."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Values of integer codes, in the dtype of the parameters; differentiable in :meth:`trainables`."""

    @abstractmethod
    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the levels next below (or at) and next above ``x``; beyond the ends both are the end."""

    def positions(self, x: Tensor) -> Tensor:
        """Where ``x`` lies among the codes: level k at k, linear between levels, 1 beyond the ends outside."""
        lower, upper = self.neighbours(x)
        outside = (x > upper).float() - (x < lower).float()
        width = upper - lower
        return self.encode(lower) + torch.where(width > 0, (x - lower) / width, outside)

    def affine_form(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int, int] | None:
        """(scale, zero point, smallest, largest code) if values are ``scale * (code - zero_point)``, else None.

        For fused kernels; the tensors are broadcastable against a tensor of ``shape``.
        """
        return None

    def integers(self) -> tuple[Tensor, Tensor] | None:
        """(integers, step) with decided values ``step * integers`` exactly, for integer kernels; None where the grid
        has no such form. Integers are floats of the codes' shape, the step is broadcastable against them."""
        return None

    def levels(self) -> Tensor | None:
        """Sorted values of a scale of 1, one per code; None where they are no fixed list."""
        return None

    def columns(self, shape: tuple[int, ...], as_matrix: Callable[[Tensor], Tensor]) -> Columns:
        """View for solvers: this grid on ``as_matrix(weight)``, (groups, rows, columns), for a weight of ``shape``."""
        return Columns.of(self, shape, as_matrix)

    def twin(self) -> Quantizer:
        """The same grid and parameters in buffers of its own; without codes, rounding, mixing and kept mean."""
        twin = copy.copy(self)
        twin._modules = {}
        twin._buffers = {name: None if name in ('codes', 'offset') or buffer is None else buffer.detach().clone()
                         for name, buffer in self._buffers.items()}
        twin.rounding = twin.mix = None
        twin.enabled, twin.keep_mean = True, False
        return twin

    # ---- decided values ---------------------------------------------------------------------------------------------
    def set_codes(self, codes: Tensor) -> None:
        """Fix the result of ``forward`` to these codes, as from ``encode``.

        Raises:
            ValueError: Not an integer tensor, or values outside the grid.
        """
        first, last = self.code_range
        low, high = (int(end) for end in codes.aminmax())
        if codes.is_floating_point() or low < first or high > last:
            raise ValueError(f'set_codes got {codes.dtype} codes in {low}..{high}: expected integers in {first}..{last}'
                             f' ({self.bit_width} bits), as from encode().')
        self.codes, self.offset = codes.detach().to(code_dtype(first, last)), None

    def clear_codes(self) -> None:
        """Back to nearest rounding of the float tensor."""
        self.codes = self.offset = None

    @torch.no_grad()
    def decide(self, x: Tensor) -> None:
        """Fix codes (nearest ones if none are set) and offset, so that ``x`` is not needed again."""
        if self.codes is None:
            self.set_codes(self.encode(x))
        if self.keep_mean and self.offset is None:
            self.offset = self._lost_mean(wide := wide_float(x), self._on_grid(wide))

    def stored_bits(self, numel: int) -> int:
        """Bits of a packed tensor of so many elements: codes, parameters, offsets."""
        offsets = self.num_channels * PARAMETER_BITS if self.keep_mean else 0
        return numel * self.bit_width + self.num_scales * self._bits_per_scale() + offsets

    def _bits_per_scale(self) -> int:
        return len(self.per_scale) * PARAMETER_BITS

    # ---- for training and search ------------------------------------------------------------------------------------
    def sizes(self) -> list[Tensor]:
        """Buffers to which all values are proportional."""
        return []

    def trainables(self) -> dict[str, list[Tensor]]:
        """Buffers that may train, by role; callers switch ``requires_grad``. Roles are open names."""
        return {'activation_scale': self.sizes()}

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring what trains back to valid values; called after each step."""
        for size in self.sizes():
            if size.numel() == 1:  # in each step, for each activation: nothing to be relative to, one operation
                size.clamp_(min=1e-30)  # by which a float32 can be divided
            else:
                size.copy_(positive(size))

    def state(self) -> list[Tensor]:
        """Buffers that go with the codes: what must be copied to return to a state."""
        return [getattr(self, name) for name in self.per_scale]

    @torch.no_grad()
    def rescale(self, factor: float | Tensor) -> bool:
        """Multiply all values by a factor, or one per channel (C,), with the same codes; False, and nothing done, where
        no buffer is proportional to the values, or channels share a scale."""
        sizes, each = self.sizes(), factor
        if sizes and isinstance(factor, Tensor):
            each = self.granularity.of_channels(factor, sizes[0].dim())
        if not sizes or each is None:
            return False
        for size in sizes:
            size.mul_(each)
        if self.offset is not None:
            self.offset.mul_(factor.view_as(self.offset) if isinstance(factor, Tensor) else factor)
        return True

    # ---- checkpoints ------------------------------------------------------------------------------------------------
    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool,
                              missing_keys: list, unexpected_keys: list, error_msgs: list) -> None:
        """Take over which buffers there are, their shapes, and the bit width: a fresh quantizer does not know them."""
        saved_bits = state_dict.get(prefix + 'bits')
        if saved_bits is not None:
            self._adopt_bits(int(saved_bits))
        for name, own in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if saved is None and saved_bits is not None and name in ('codes', 'offset'):
                setattr(self, name, None)
            elif saved is not None and (own is None or own.shape != saved.shape):
                # like the saved one, whose order in memory decides which kernels, and so which bits, a layer computes
                dtype = saved.dtype if own is None else own.dtype
                setattr(self, name, torch.empty_like(saved, dtype=dtype, device=self.bits.device))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys,
                                      error_msgs)
        if prefix + '_initialized' in state_dict:
            self._ready = bool(state_dict[prefix + '_initialized'])

    def _repr_parts(self) -> str:
        return f'bits={self.bit_width}'

    def extra_repr(self) -> str:
        state = 'codes' if self.codes is not None else ('range' if self.initialized else 'no range')
        return (f'{self._repr_parts()}, granularity={self.granularity}, scales={self.num_scales}, {state}'
                + ('' if self.enabled else ', disabled'))
