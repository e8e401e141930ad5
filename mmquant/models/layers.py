"""Quantized layers: the float layer plus a weight quantizer plus an input quantizer.

A quantized layer *is* the float layer: its class is a subclass made on the fly, so ``forward`` (padding of
``Conv2dAdaptivePadding``, weight standardisation, ...), parameters, names and ``isinstance`` stay what they were.
"""
import contextlib
import threading
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from mmquant.models.packed_weight import PackedWeight
from mmquant.quantizers import Wide

# Layers whose weights are quantized; subclasses included.
TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED_TYPES, nn.Linear)
# Convolutions of mmcv that are no torch layers; by name, since importing them needs the compiled operators.
DEFORMABLE_TYPES = ('DeformConv2d', 'ModulatedDeformConv2d')


def _operators(module: nn.Module) -> list[str]:
    return [c.__name__ for c in type(module).__mro__ if c.__module__.startswith('mmcv.ops')]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer; subclasses and deformable convolutions included."""
    return isinstance(module, LAYER_TYPES) or not set(DEFORMABLE_TYPES).isdisjoint(_operators(module))


class _Calls(threading.local):
    """What belongs to calls that are running, not to the modules: each thread has its own."""

    def __init__(self) -> None:
        self.active: dict = {}  # layer in its forward -> weight and bias that it computes with
        self.positions: WeakKeyDictionary = WeakKeyDictionary()  # PerCall -> number of the next call


_CALLS = _Calls()


class Adapter(Wide):
    """Stands around a weight quantizer: a quantized layer computes with after(Q(before(w))).

    Several compose: each ``before`` in order, each ``after`` in reverse. All state is in buffers.
    """

    def before(self, weight: torch.Tensor) -> torch.Tensor:
        """What is left to quantize."""
        return weight

    def after(self, weight: torch.Tensor) -> torch.Tensor:
        """What becomes of the quantized weight, differentiable in :meth:`trainables`."""
        return weight

    def trainables(self) -> dict[str, list[torch.Tensor]]:
        """Buffers that may train, by role."""
        return {}

    def constrain(self) -> None:  # noqa: B027 (optional)
        """Bring what trains back to valid values."""

    def state(self) -> list[torch.Tensor]:
        """Buffers that must be copied to return to a state."""
        return [x for tensors in self.trainables().values() for x in tensors]

    def stored_bits(self) -> int:
        """Bits of its buffers in a packed file."""
        return sum(x.numel() * x.element_size() * 8 for x in self.buffers())


class BiasSlot(Adapter):
    """The bias of a layer's quantized mode, as something that trains: role ``bias``."""

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.bias = bias

    def trainables(self) -> dict[str, list[torch.Tensor]]:
        return {'bias': [self.bias]}


class QuantizedLayer:
    """Mix-in of all quantized layers.

    Attributes:
        weight_quantizer (Quantizer | None): Of ``weight``, whose parameter stays float. ``None``: float weights.
        input_quantizer (Quantizer | None): Of the layer's input; ``None`` where the producer did it.
        adapters (nn.ModuleList): :class:`Adapter` objects around the weight quantizer; none by default.
        quantized_bias (Tensor | None): Buffer, the bias while weights are quantized; None: the float one.
        read_elsewhere (bool): Whether others read the weight past ``forward``: ``weight`` is then always the one that
            the layer computes with.
    """
    read_elsewhere = False

    @property
    def weight(self) -> torch.Tensor:
        active = _CALLS.active.get(self) or self.__dict__.get('_fixed')
        if active is None and self.read_elsewhere and getattr(self.weight_quantizer, 'enabled', False):
            return self.quantized_weight
        return self._parameters['weight'] if active is None else active[0]

    @property
    def bias(self) -> torch.Tensor | None:
        active = _CALLS.active.get(self) or self.__dict__.get('_fixed')
        return self._parameters.get('bias') if active is None or active[1] is None else active[1]

    @property
    def quantized_tensor(self) -> torch.Tensor:
        """What the weight quantizer is given: the float weight through all adapters."""
        weight = self._parameters['weight']
        for adapter in self.adapters:
            weight = adapter.before(weight)
        return weight

    @property
    def slots(self) -> list[Adapter]:
        """What may train with the layer beside quantizers and roundings: its adapters, and its bias if it has one."""
        return [*self.adapters, *([] if self.quantized_bias is None else [BiasSlot(self.quantized_bias)])]

    @property
    def quantized_weight(self) -> torch.Tensor:
        """What the layer computes with while its weight is quantized."""
        own = self._parameters['weight']
        weight = self.weight_quantizer(own if isinstance(own, PackedWeight) else self.quantized_tensor)
        for adapter in reversed(self.adapters):
            weight = adapter.after(weight)
        return weight.to(own.dtype)

    def forward(self, x, *args, **kwargs):
        x = x if self.input_quantizer is None else self.input_quantizer(x)
        if self.weight_quantizer is None or not self.weight_quantizer.enabled:
            return super().forward(x, *args, **kwargs)
        _CALLS.active[self] = self.quantized_weight, self.quantized_bias
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            del _CALLS.active[self]

    def leave_codes(self, name: str) -> None:
        """Give up the float weight; ``name`` is the layer's, for the error of who asks for it."""
        weight = self._parameters['weight']
        self._parameters['weight'] = PackedWeight(weight.new_zeros(()), tuple(weight.shape), name)

    def _apply(self, fn, recurse: bool = True):
        weight = self._parameters.get('weight')
        if not isinstance(weight, PackedWeight):
            return super()._apply(fn, recurse)
        self._parameters['weight'] = None  # moving it would allocate it
        super()._apply(fn, recurse)
        self._parameters['weight'] = weight.moved(fn)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *more) -> None:
        """Take over whether there is a bias of quantized mode."""
        saved = state_dict.get(prefix + 'quantized_bias')
        if saved is not None:
            self.quantized_bias = torch.empty_like(saved, device=self._parameters['weight'].device)
        elif prefix + 'weight_quantizer.bits' in state_dict:
            self.quantized_bias = None
        super()._load_from_state_dict(state_dict, prefix, *more)


class PerCall(nn.ModuleList):
    """One input quantizer for each call of a layer in a forward pass: one a pyramid level of a shared head."""

    @property
    def position(self) -> int:
        """Number of the next call in this thread; the model sets it to 0 when a forward pass begins."""
        return _CALLS.positions.get(self, 0)

    @position.setter
    def position(self, value: int) -> None:
        _CALLS.positions[self] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        quantizer = self[self.position % len(self)]
        self.position += 1
        return quantizer(x)


def mixed_class(mixin: type, cls: type, prefix: str = 'Quantized') -> type:
    """The one subclass of a module's class whose ``forward`` is the mix-in's; its modules can be copied and pickled."""
    return _mixed_class(mixin, cls, prefix)


@lru_cache(maxsize=None)
def _mixed_class(mixin: type, cls: type, prefix: str) -> type:
    return type(prefix + cls.__name__, (mixin, cls), {'__module__': cls.__module__, '_mixed': (mixin, cls, prefix),
                                                      '__reduce_ex__': _reduce})


def _reduce(module: nn.Module, protocol: int) -> tuple:
    """As of any module, but for the class, which has no name to be found by."""
    _, _, *state = object.__reduce_ex__(module, 2)
    return _unfilled, (_parts(type(module)), ), *state


def _parts(cls: type):
    mixin, base, prefix = cls.__dict__.get('_mixed', (None, None, None))
    return cls if mixin is None else (mixin, _parts(base), prefix)


def _unfilled(parts) -> nn.Module:
    cls = _class_of(parts)
    return cls.__new__(cls)


def _class_of(parts) -> type:
    return mixed_class(parts[0], _class_of(parts[1]), parts[2]) if isinstance(parts, tuple) else parts


def computed_parts(module: nn.Module, names: tuple[str, ...] = ('weight', 'bias')) -> list[str]:
    """Parameters that are made anew in each forward pass, and by what: pruning, weight or spectral norm, own code."""
    found = []
    for name in names:
        if name not in module._parameters and getattr(module, name, None) is not None:
            makers = getattr(module, 'parametrizations', {})
            makers = makers[name] if name in makers else (x for x in module._forward_pre_hooks.values() if any(
                name == getattr(x, key, None) for key in ('name', '_tensor_name')))
            found.append(f'{name} ({", ".join(type(x).__name__ for x in makers) or "computed"})')
    return found


def has_own_weight(module: nn.Module) -> bool:
    """Whether a module is a layer whose weight, and bias if any, are parameters of its own."""
    return is_layer(module) and module._parameters.get('weight') is not None and not computed_parts(module)


def replace_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Give a module a parameter of its own, laid out as before: whoever shared the one before keeps that."""
    before = module._parameters.get(name)
    value = value if before is None else torch.empty_like(before).copy_(value)
    setattr(module, name, nn.Parameter(value, before is None or before.requires_grad))


def use_channels_last(model: nn.Module) -> None:
    """Keep weights of 2-D convolutions as (O, H, W, I) in memory, which is fastest with images kept alike.

    Not inside mmcv's operators: a deformable convolution takes its offsets for plain ones, whatever made them.
    """
    inside = {m for operator in mmcv_operators(model) for m in operator.modules()}
    for module in (m for m in model.modules() if m not in inside):
        # a layer's own forward may look at the weight through a view
        plain = type(module).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward)
        if plain and module._parameters.get('weight') is not None:
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def use_plain_memory(model: nn.Module) -> None:
    """Undo :func:`use_channels_last`."""
    for module in model.modules():
        weight = module._parameters.get('weight') if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) else None
        if isinstance(weight, PackedWeight):
            module.weight_quantizer.codes = module.weight_quantizer.codes.contiguous()
        elif weight is not None:
            weight.data = weight.data.contiguous()


def mmcv_operators(model: nn.Module) -> list[nn.Module]:
    """Modules of mmcv's compiled operators: RoIAlign, deformable convolutions, ..."""
    return [m for m in model.modules() if _operators(m)]


def give_plain_memory(model: nn.Module) -> None:
    """Lay out plainly what mmcv's operators read: RoIAlign takes channels_last maps for plain ones in silence."""
    for module in mmcv_operators(model):
        module.register_forward_pre_hook(_contiguous, with_kwargs=True)


def _contiguous(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    return tree_map_only(torch.Tensor, torch.Tensor.contiguous, (args, kwargs))


def altered(module: nn.Module) -> str:
    """What besides its class decides what a module computes: '' or words for a message."""
    if 'forward' in vars(module):
        return 'its forward was set on the instance'
    if [*module._forward_hooks.values(), *(x for x in module._forward_pre_hooks.values() if x is not _contiguous)]:
        return 'it has forward hooks'
    return ''


def channel_axis(layer: nn.Module) -> int:
    """Axis of a layer's weight that counts output channels."""
    return 1 if isinstance(layer, TRANSPOSED_TYPES) else 0


def output_axis(layer: nn.Module) -> int:
    """Axis of a layer's output that counts its channels: the last one of a linear layer, else 1."""
    return -1 if isinstance(layer, nn.Linear) else 1


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel is convolved by itself."""
    return getattr(layer, 'groups', 1) == getattr(layer, 'in_channels', 0) > 1


def num_outputs(layer: nn.Module) -> int:
    """Output channels of a layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def quantize_layer(layer: nn.Module, weight_quantizer: nn.Module | None,
                   input_quantizer: nn.Module | None = None) -> None:
    """Turn a float layer into a quantized one, in place."""
    layer.__class__ = mixed_class(QuantizedLayer, type(layer))
    layer.weight_quantizer, layer.input_quantizer = weight_quantizer, input_quantizer
    layer.adapters = nn.ModuleList()
    layer.register_buffer('quantized_bias', None)


def own_bias(layer: QuantizedLayer) -> torch.Tensor:
    """The bias of a layer's quantized mode, made from the float one (zeros without) if there is none yet."""
    if layer.quantized_bias is None:
        weight, bias = layer._parameters['weight'], layer._parameters.get('bias')
        layer.quantized_bias = weight.new_zeros(num_outputs(layer)) if bias is None else bias.detach().clone()
    return layer.quantized_bias


def quantize_output(module: nn.Module, quantizer: nn.Module) -> None:
    """Quantize what a module returns (one tensor)."""
    module.output_quantizer = quantizer
    module.register_forward_hook(_quantized_output)


def _quantized_output(module, args, output):
    return module.output_quantizer(output)


@contextlib.contextmanager
def enabled(quantizers, state: bool):
    """Switch quantizers on or off for the duration of a block, in all threads; restores each one's own state."""
    before = [(q.__dict__, q.enabled) for q in quantizers]  # not by setattr of a module, a hundred times slower
    try:
        for attributes, _ in before:
            attributes['enabled'] = state
        yield
    finally:
        for attributes, was in before:
            attributes['enabled'] = was


def fix_weight(layer) -> None:
    """Quantize the weight of a quantized layer now; it stays as it is inside :func:`fixed_weights`."""
    with torch.no_grad(), enabled([layer.weight_quantizer], True):
        layer.__dict__['_fixed'] = layer.quantized_weight, layer.quantized_bias


@contextlib.contextmanager
def fixed_weights(layers):
    """Quantize the weights of quantized layers once instead of in every forward pass; float ones stay float.

    As :func:`enabled`, it holds for all threads.
    """
    layers = [layer for layer in layers if layer.weight_quantizer.enabled]
    try:
        for layer in layers:
            fix_weight(layer)
        with enabled([layer.weight_quantizer for layer in layers], False):
            yield
    finally:
        for layer in layers:
            layer.__dict__.pop('_fixed', None)
