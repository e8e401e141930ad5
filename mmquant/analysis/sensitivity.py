"""Which layer costs how much: its own output error, and the metric with only it quantized or only it float."""
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mmquant.analysis.inspection import sqnr_db
from mmquant.models import QuantizedModel
from mmquant.models.layers import PerCall, enabled
from mmquant.models.quantizer_index import quantizer_at
from mmquant.quantizers import Quantizer
from mmquant.utils.contexts import hooked


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, by its path in the model."""
    name: str
    w_bits: int | None  # None: float
    a_bits: int | None  # of the input, wherever it is quantized
    sqnr: float  # signal-to-quantization-noise ratio of its output on float inputs, in dB
    only_quantized: float | None = None  # the metric with this layer quantized and everything else float
    only_float: float | None = None  # the metric with this layer float and everything else quantized
    drop: float | None = None  # float metric minus only_quantized: what quantizing this layer costs
    gain: float | None = None  # only_float minus the quantized metric: what keeping this layer float would bring


@dataclass(frozen=True)
class LayerQuantizers:
    """Quantizers of one layer."""
    weights: tuple[Quantizer, ...]
    inputs: tuple[Quantizer, ...]  # wherever they sit: one, or one for each call
    at_producer: bool = False  # the input is quantized where it is made: the layer is handed quantized data

    @property
    def all(self) -> tuple[Quantizer, ...]:
        return self.weights + self.inputs

    @property
    def a_bits(self) -> int | None:
        """Bits of the input; None: float."""
        return self.inputs[0].bit_width if self.inputs else None


def quantizers_of(model: QuantizedModel) -> dict[str, LayerQuantizers]:
    """Layer -> its quantizers, for every layer with quantized weights or input."""
    plan, found = model.plan, {}
    weights = model.weight_quantizers()
    for name in plan.layers:
        place, layer = plan.inputs.get(name), model.architecture.get_submodule(name)
        if place is None and name not in weights:
            continue
        at_producer = place is not None and place.what == 'output'
        source = quantizer_at(model.architecture, place) if at_producer else getattr(layer, 'input_quantizer', None)
        inputs = tuple(source) if isinstance(source, PerCall) else () if source is None else (source,)
        found[name] = LayerQuantizers((weights[name],) if name in weights else (), inputs, at_producer)
    return found


@contextlib.contextmanager
def only(model: QuantizedModel, name: str, state: bool):
    """Switch the quantizers of one layer, weights and input, to ``state`` and all others to the opposite.

    An input quantizer that several layers share is switched for all of them.
    """
    with model.quantization(weights=not state, activations=not state), enabled(quantizers_of(model)[name].all, state):
        yield


@torch.no_grad()
def layer_sqnr(model: QuantizedModel, batches: list[tuple]) -> dict[str, float]:
    """SQNR in dB of each layer's output when its weights and its input alone are quantized.

    ``batches`` are preprocessed: (inputs, data samples or None).
    """
    layers = quantizers_of(model)
    power = {name: [0.0, 0.0] for name in layers}

    calls = dict.fromkeys(layers, 0)

    def measure(name, module, args, output):
        if calls[name] < 0:  # the quantized run below
            return
        own, position, x = layers[name], calls[name], args[0]
        calls[name] = -1
        if len(own.inputs) > 1:
            module.input_quantizer.position = position
        with enabled(own.all, True):
            noisy = module(own.inputs[0](x) if own.at_producer else x, *args[1:])
        calls[name] = position + 1
        power[name][0] += output.double().square().sum().item()
        power[name][1] += (noisy.double() - output.double()).square().sum().item()

    modules = {name: model.architecture.get_submodule(name) for name in layers}
    with hooked(modules, measure), model.quantization(weights=False, activations=False):
        for inputs, samples in batches:
            model.run(inputs, samples)
    return {name: sqnr_db(*sums) for name, sums in power.items()}


def sensitivities(model: QuantizedModel, batches: list[tuple], evaluate: Callable[[], float] | None = None,
                  names: list[str] | None = None, report: Callable | None = None
                  ) -> tuple[list[LayerSensitivity], dict[str, float]]:
    """Sensitivity of every layer, worst first: by the drop, without a metric by the SQNR.

    Args:
        model, batches: As in :func:`layer_sqnr`.
        evaluate (Callable | None): Returns the metric (larger is better) of the model as it is. None: SQNR only.
        names (list[str] | None): Layers to measure. Default: all.
        report (Callable | None): ``report(done, total)`` after each evaluation.

    Returns the layers, and the metric of the ``float`` and the ``quantized`` model.
    """
    weights = model.plan.weights
    layers = quantizers_of(model)
    found = [LayerSensitivity(name, weights[name].bits if name in weights else None, layers[name].a_bits, sqnr)
             for name, sqnr in layer_sqnr(model, batches).items() if names is None or name in names]
    if evaluate is None:
        return sorted(found, key=lambda x: x.sqnr), {}
    with model.frozen(False, False):
        whole = dict(float=evaluate())
    with model.frozen(*model.ready):
        whole['quantized'] = evaluate()
    for i, item in enumerate(found):
        with only(model, item.name, True):
            alone = evaluate()
        with only(model, item.name, False):
            without = evaluate()
        found[i] = replace(item, only_quantized=alone, only_float=without, drop=whole['float'] - alone,
                           gain=without - whole['quantized'])
        if report:
            report(i + 1, len(found))
    return sorted(found, key=lambda x: (-x.drop, x.sqnr)), whole
