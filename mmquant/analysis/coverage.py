"""How much of a model can be quantized as it is: layers, units, output error, or the reason of a failure."""
from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field

import torch

from mmquant.algorithms.preparation import FoldBatchNorm, InsertQuantizers, Reparameterize
from mmquant.algorithms.ranges import InitActivationRange, InitWeightRange
from mmquant.algorithms.step import CalibrationContext
from mmquant.analysis.sqnr import sqnr_db
from mmquant.models import QuantizedModel
from mmquant.models.layers import is_layer
from mmquant.reconstruction.divergence import float_tensors

W8A8 = dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=8, granularity='channel'),
            activation=dict(type='mmquant.UniformAffineQuantizer', bits=8))
MIN_MAX = dict(type='mmquant.MinMaxObserver')
GRANULARITIES = ('layer', 'block', 'stage')


@dataclass(frozen=True)
class Coverage:
    """What was found about one model.

    Attributes:
        quantized, layers (int): Layers with quantized weights, and all layers with weights.
        units (dict[str, int]): Number of reconstruction units by granularity.
        sqnr (float): Signal-to-quantization-noise ratio of the outputs at W8A8 with min-max ranges, in dB.
        seconds (float): Building, quantizing, two evaluations.
        reason (str): Of the failure; empty if there is none.
        unreached (int): Layers that the raw outputs do not depend on: auxiliary heads, branches for training.
        functional (int): Layers whose weight is used, but not by calling the layer: these stay float.
    """
    quantized: int = 0
    layers: int = 0
    units: dict[str, int] = field(default_factory=dict)
    sqnr: float = float('nan')
    seconds: float = 0.0
    reason: str = ''
    unreached: int = 0
    functional: int = 0

    @property
    def ok(self) -> bool:
        """Every layer that the outputs depend on is quantized, and they are finite."""
        return not self.reason and self.quantized == self.layers - self.unreached and self.sqnr == self.sqnr


def output_sqnr(reference, quantized) -> float:
    """Signal-to-quantization-noise ratio in dB over all floating-point outputs; infinite for equal ones."""
    pairs = [(r.double(), q.double()) for r, q in zip(float_tensors(reference), float_tensors(quantized), strict=True)]
    signal_power = sum(r.square().sum().item() for r, _ in pairs)
    noise = sum((q - r).square().sum().item() for r, q in pairs)
    return sqnr_db(signal_power, noise)


@contextlib.contextmanager
def time_limit(seconds: int):
    """Raise TimeoutError in the main thread after so many seconds."""

    def stop(*_):
        raise TimeoutError(f'took longer than {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure_coverage(build, shape: tuple[int, int, int], limit: int = 300, seed: int = 0) -> Coverage:
    """Quantize a model with random weights at W8A8 with min-max ranges.

    Args:
        build (Callable): Returns the float model.
        shape (tuple): (channels, height, width) of the one random image that calibrates and evaluates.
        limit (int): Seconds after which to give up. Default 300.
        seed (int): Of weights and image.
    """
    started = time.monotonic()
    try:
        with time_limit(limit), torch.no_grad():
            torch.manual_seed(seed)
            found = _measure(QuantizedModel(build(), W8A8, 'random'), shape)
    except Exception as error:  # whatever a model of the zoo may raise: it goes into the table
        text = ' '.join(str(error).split())
        return Coverage(seconds=time.monotonic() - started, reason=f'{type(error).__name__}: {text[:160]}')
    return Coverage(seconds=time.monotonic() - started, **found)


def _measure(model: QuantizedModel, shape: tuple[int, int, int]) -> dict:
    total = sum(is_layer(m) for m in model.architecture.modules())
    context = CalibrationContext(model, [torch.randn(1, *shape)])
    for step in (Reparameterize(), FoldBatchNorm(), InsertQuantizers(), InitWeightRange(MIN_MAX),
                 InitActivationRange(MIN_MAX)):
        step.run(context)
    with model.quantization(weights=False, activations=False):
        reference = context.run(0)
    with model.frozen(*model.ready):
        quantized = context.run(0)
    layers = sum(is_layer(m) for m in model.architecture.modules())
    reached = {x.name for x in model.plan.layers if x.w_bits}
    units = {g: len(model.units(g)) for g in GRANULARITIES}
    rest = [x.name for x in model.plan.layers if x.w_bits is None]
    used = functional_layers(context, rest) if rest else []
    return dict(quantized=len(reached), layers=layers, units=units, sqnr=output_sqnr(reference, quantized),
                unreached=len(rest) - len(used), functional=len(used), reason='' if total else 'no layer with weights')


@torch.enable_grad()
def functional_layers(context: CalibrationContext, names: list[str]) -> list[str]:
    """Those of some layers whose weight the outputs depend on, as the gradient tells."""
    weights = {n: context.model.architecture.get_submodule(n)._parameters.get('weight') for n in names}
    weights = {n: w.requires_grad_() for n, w in weights.items() if w is not None}
    with context.model.quantization(weights=False, activations=False):
        outputs = [x for x in float_tensors(context.run(0)) if x.requires_grad]
    if not outputs:
        return []
    gradients = torch.autograd.grad(sum(x.sum() for x in outputs), list(weights.values()), allow_unused=True)
    return [n for n, g in zip(weights, gradients) if g is not None]
