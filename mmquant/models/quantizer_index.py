"""Where a model's quantizers are: looked up once, when they are inserted."""
from collections import defaultdict

from torch import nn

from mmquant.models.layers import PerCall, QuantizedLayer
from mmquant.models.matmul import QuantizedMatmulOwner
from mmquant.models.plan import Place, Plan
from mmquant.models.units import unit_module
from mmquant.quantizers import Quantizer
from mmquant.structures.unit import Unit


class QuantizerIndex:
    """Quantizers of a model in which a plan was inserted, by the paths of what holds them, in the order of its modules.

    ``layers`` are those with quantized weights, ``per_call`` the quantizers of layers with one for each call. Keys of
    ``activations``: ``'conv.input'``, ``'conv.input.0'`` (for each call), ``'block.output'``, ``'attn.matmul0.left'``;
    a quantizer that several layers share stands at the first of them.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        modules = dict(model.named_modules())
        self.layers = {n: m for n, m in modules.items() if n in plan.weights}
        self.per_call = {n: m.input_quantizer for n, m in modules.items()
                         if isinstance(m, QuantizedLayer) and isinstance(m.input_quantizer, PerCall)}
        self.activations: dict[str, Quantizer] = {}
        self._held: dict[nn.Module, list[str]] = defaultdict(list)  # module -> names of its activation quantizers
        names: dict[Quantizer, str] = {}
        for name, module in modules.items():
            for suffix, quantizer in _of(module):
                key = names.setdefault(quantizer, f'{name}.{suffix}')
                self.activations[key] = quantizer
                self._held[module].append(key)
        self._rank = {name: i for i, name in enumerate(self.activations)}

    def within(self, model: nn.Module, unit: Unit) -> dict[str, Quantizer]:
        """Activation quantizers inside a unit, that of the activation after it included."""
        modules = [*unit_module(model, unit).modules()]
        if unit.activation:
            modules += model.get_submodule(unit.activation).modules()
        names = {name for module in modules for name in self._held.get(module, ())}
        return {name: self.activations[name] for name in sorted(names, key=self._rank.get)}


def _of(module: nn.Module):
    """(what, quantizer) of the activations that a module quantizes."""
    own = module.input_quantizer if isinstance(module, QuantizedLayer) else None
    if isinstance(own, PerCall):
        yield from ((f'input.{k}', q) for k, q in enumerate(own))
    elif own is not None:
        yield 'input', own
    if isinstance(getattr(module, 'output_quantizer', None), Quantizer):
        yield 'output', module.output_quantizer
    if isinstance(module, QuantizedMatmulOwner):
        yield from ((f'matmul{k}.{role}', q) for k, site in module.matmul_quantizers.items()
                    for role, q in site.items())


def quantizer_at(model: nn.Module, place: Place) -> Quantizer:
    """The inserted quantizer of a place."""
    module = model.get_submodule(place.name)
    if place.what == 'operand':
        return module.matmul_quantizers[str(place.call)][place.role]
    quantizer = getattr(module, f'{place.what}_quantizer')
    return quantizer if place.call is None else quantizer[place.call]
