"""What a look inside a quantized model shows: errors of weights and outputs by layer, histograms with clip lines."""
import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves

from mmquant.models import QuantizedModel
from mmquant.models.layers import is_layer
from mmquant.quantizers import Quantizer
from mmquant.utils.contexts import hooked

BINS = 64
SAMPLES = 2**14  # values of one call that a histogram looks at
CHUNK = 2  # images whose float outputs of all layers are kept at once


@dataclass(frozen=True)
class Histogram:
    """Distribution of a tensor on its quantizer's grid."""
    name: str  # layer of the weights, or place of the activations
    bits: int
    edges: tuple[float, ...]  # ends of the bins in levels of the grid; level k lies at k
    counts: tuple[float, ...]  # values in each bin; what lies further out than the edges counts in the last bins
    low: float  # clip lines: half a step beyond the lowest and the highest level
    high: float
    clipped: float  # share of the values beyond them, in [0, 1]


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect`; signal-to-noise ratios in dB, by layer in execution order; None: no error at all."""
    weight_sqnr: dict[str, float | None]
    output_sqnr: dict[str, float | None]
    weights: tuple[Histogram, ...]
    activations: tuple[Histogram, ...]


def sqnr_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two sums of squares: inf without noise, -inf without signal, NaN where one is."""
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan


def _finite(x: float) -> float | None:
    """``x``, None where it is infinite or NaN: what JSON and a page can hold."""
    return x if math.isfinite(x) else None


def histogram(name: str, x: torch.Tensor, quantizer: Quantizer) -> Histogram:
    """Histogram of ``x`` in the grid steps of an initialized quantizer (each channel in its own)."""
    return _histogram(name, quantizer.positions(x).flatten(), quantizer)


def _histogram(name: str, steps: torch.Tensor, quantizer: Quantizer) -> Histogram:
    steps = steps.float()
    first_code, last_code = quantizer.code_range
    low, high = first_code - 0.5, last_code + 0.5
    room = high - low
    first, last = (min(max(float(end), low - room), high + room) for end in steps.aminmax())
    first, last = min(first, low), max(last, high)
    counts = torch.histc(steps.clamp(first, last), BINS, first, last)
    edges = torch.linspace(first, last, BINS + 1)
    clipped = ((steps < low) | (steps > high)).float().mean().item()
    return Histogram(name, quantizer.bit_width, tuple(edges.tolist()), tuple(counts.tolist()), low, high, clipped)


@torch.no_grad()
def inspect(model: QuantizedModel, images: list) -> Inspection:
    """Look at the quantizers of a model that have a range, and at errors and activations over preprocessed images.

    The float and the quantized model run on ``CHUNK`` images at a time.
    """
    weights, histograms = {}, []
    for name, layer in model.quantized_layers().items():
        quantizer, w = layer.weight_quantizer, layer._parameters['weight'].detach()
        if not quantizer.initialized:
            continue
        with model.quantization(weights=True, activations=False):
            noise = (quantizer(w) - w).double().square().sum().item()
        weights[name] = _finite(sqnr_db(w.double().square().sum().item(), noise))
        histograms.append(histogram(name, w, quantizer))
    outputs, activations = _run(model, images)
    order = [c.name for c in model.flow.calls] if model.flow else []
    rank = {name: i for i, name in reversed(list(enumerate(order)))}

    def place(name: str) -> int:
        while name and name not in rank:  # 'layer.input' stands where the layer does
            name = name.rpartition('.')[0]
        return rank.get(name, len(rank))

    return Inspection({n: weights[n] for n in sorted(weights, key=place)},
                      {n: outputs[n] for n in sorted(outputs, key=place)},
                      tuple(sorted(histograms, key=lambda h: place(h.name))),
                      tuple(sorted(activations, key=lambda h: place(h.name))))


def _run(model: QuantizedModel, images: list) -> tuple[dict[str, float | None], list[Histogram]]:
    """Errors of layers' outputs against the float model, and histograms of what activation quantizers meet."""
    layers = {n: m for n in model.plan.layers if is_layer(m := model.architecture.get_submodule(n))}
    quantizers = {n: q for n, q in model.activation_quantizers().items() if q.initialized}
    sums = {name: [0.0, 0.0] for name in layers}  # signal, noise
    met: dict[str, list[torch.Tensor]] = defaultdict(list)
    references: dict[str, list[torch.Tensor]] = defaultdict(list)

    def keep(name, module, args, output):
        # cloned: activations behind a layer may write into its output
        references[name].append(tree_leaves(output)[0].detach().clone())

    def compare(name, module, args, output):
        reference = references[name].pop(0)  # a layer called several times is compared call by call
        noise = (tree_leaves(output)[0] - reference).double().square().sum().item()
        sums[name][0] += reference.double().square().sum().item()
        sums[name][1] += noise

    def watch(name, module, args):
        steps = module.positions(args[0].detach()).flatten()
        met[name].append(steps[::max(1, len(steps) // SAMPLES)].float())

    for chunk in images:
        for part in chunk.split(CHUNK):
            references.clear()
            with model.quantization(weights=False, activations=False), hooked(layers, keep):
                model.run(part)
            with model.frozen(*model.ready), hooked(layers, compare), hooked(quantizers, watch, before=True):
                model.run(part)
    histograms = [_histogram(n, torch.cat(met[n]), quantizers[n]) for n in quantizers if met[n]]
    return {n: _finite(sqnr_db(*s)) for n, s in sums.items() if s[0]}, histograms
