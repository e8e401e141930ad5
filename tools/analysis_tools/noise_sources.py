"""Where the quantization noise of a model's outputs comes from, by quantizing one tensor at a time."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmquant.analysis.inspection import sqnr_db
from mmquant.losses.divergence import float_tensors
from mmquant.models import QuantizedModel
from mmquant.models.layers import enabled
from mmquant.quantizers import Quantizer
from mmquant.utils.contexts import hooked

DRAWS = 5
"""Of random noise; common factors, such as gates of whole channels, make single ones differ by decibels."""


@dataclass(frozen=True)
class NoiseSources:
    """SQNR of the outputs in dB, against the original float model where nothing else is said.

    Attributes:
        off (float): With every quantizer off: what folding and other edits cost.
        weights, activations (float): With these alone quantized.
        random (tuple): With random noise instead of rounding at every tensor, as strong as what rounding did there:
            lowest and highest of some draws. The SQNR of the quantized model about there: the net is that sensitive,
            whatever the quantizers do.
        place (str): The one tensor whose quantization alone makes most noise; the next ones are about it.
        share (float): Its part of the noise of all tensors, each alone.
        alone (float): With it alone quantized, against all off.
        own (float): SQNR of the tensor itself, as the quantized model meets it.
        peak (float): Its largest magnitude by its root mean square: what a min-max range makes room for.
        calls (tuple): Root mean squares of what one quantizer gets in calls of a shared layer, smallest and largest.
    """
    off: float
    weights: float
    activations: float
    random: tuple[float, float]
    place: str = ''
    share: float = 0.0
    alone: float = 0.0
    own: float = 0.0
    peak: float = 0.0
    calls: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_json(cls, row: dict) -> NoiseSources:
        """From what strict JSON holds, which has null for an infinite ratio."""
        return cls(**{key: math.inf if value is None else value for key, value in row.items()})

    def __str__(self) -> str:
        low, high = self.calls
        spread = f', its calls from {low:.3g} to {high:.3g} rms' if high > 2 * low else ''
        off = 'no error' if self.off == math.inf else f'{self.off:.0f}'
        return (f'random noise instead of rounding {self.random[0]:.1f} to {self.random[1]:.1f}, quantizers off '
                f'{off}, weights alone {self.weights:.1f}, activations alone {self.activations:.1f}; '
                f'{self.share:.0%} of the noise from `{self.place}`: alone {self.alone:.1f}, '
                f'itself {self.own:.1f}, peak {self.peak:.1f} rms{spread}')


def powers(reference, outputs) -> tuple[float, float]:
    """Sums of squares of all floating-point outputs, and of their differences."""
    pairs = [(r.double(), q.double()) for r, q in zip(float_tensors(reference), float_tensors(outputs), strict=True)]
    return sum(r.square().sum().item() for r, _ in pairs), sum((q - r).square().sum().item() for r, q in pairs)


class _Watch:
    """What one quantizer does to its tensor, over all its calls."""

    def __init__(self) -> None:
        self.signal = self.noise = self.peak = self.count = 0
        self.sizes: list[float] = []  # root mean squares, by call
        self.noises: list[float] = []  # mean squares

    def __call__(self, quantizer: Quantizer, args: tuple[Tensor], output: Tensor) -> None:
        x = args[0].double()
        square, noise = x.square(), (output.double() - x).square()
        self.signal, self.noise = self.signal + square.sum().item(), self.noise + noise.sum().item()
        self.peak, self.count = max(self.peak, x.abs().max().item()), self.count + x.numel()
        self.sizes.append(square.mean().item()**0.5)
        self.noises.append(noise.mean().item())


def _random_instead(watches: dict[str, _Watch]) -> Callable:
    """Hook: uniform noise that is as strong as what the quantizer did in this call."""
    noises = {name: iter(watch.noises) for name, watch in watches.items()}

    def hook(name: str, quantizer: Quantizer, args: tuple[Tensor], output: Tensor) -> Tensor:
        noise = torch.rand(args[0].shape, dtype=torch.double) - 0.5
        return (args[0] + noise * (12 * next(noises[name], 0.0))**0.5).to(args[0].dtype)

    return hook


def noise_sources(model: QuantizedModel, run: Callable, reference) -> NoiseSources:
    """Quantize nothing, weights, activations, and each tensor alone; ``run()`` gives the model's outputs."""

    def outputs(weights: bool, activations: bool):
        with model.quantization(weights, activations):
            return run()

    def ratio(found) -> float:
        return sqnr_db(*powers(reference, found))

    quantizers = {f'{n}.weight': q for n, q in model.weight_quantizers().items()}
    quantizers |= {n: q for n, q in model.activation_quantizers().items()}
    watches = {name: _Watch() for name in quantizers}
    with hooked(quantizers, lambda name, *rest: watches[name](*rest)):
        outputs(True, True)
    random = []
    for _ in range(DRAWS):
        with hooked(quantizers, _random_instead(watches)):
            random.append(ratio(outputs(True, True)))
    off, found = outputs(False, False), {}
    for name, quantizer in quantizers.items():
        with model.quantization(False, False), enabled([quantizer], True):
            found[name] = powers(off, run())
    place, (signal, noise) = max(found.items(), key=lambda item: item[1][1])
    total, watch = sum(noise for _, noise in found.values()), watches[place]
    rms = (watch.signal / max(1, watch.count))**0.5
    return NoiseSources(ratio(off), ratio(outputs(True, False)), ratio(outputs(False, True)),
                        (min(random), max(random)), place, noise / total if total else 0.0, sqnr_db(signal, noise),
                        sqnr_db(watch.signal, watch.noise), watch.peak / rms if rms else 0.0,
                        (min(watch.sizes, default=0.0), max(watch.sizes, default=0.0)))
