"""How much of a model can be quantized as it is: layers, units, output error, or the reason of a failure."""
from __future__ import annotations

import gc
import math
import multiprocessing
import os.path as osp
import re
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from noise_sources import noise_sources, powers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from mmquant.algorithms.preparation import FoldBatchNorm, InsertQuantizers, Reparameterize
from mmquant.algorithms.ranges import InitActivationRange, InitWeightRange
from mmquant.algorithms.step import CalibrationContext
from mmquant.analysis.inspection import sqnr_db
from mmquant.losses.divergence import float_tensors
from mmquant.models import QuantizedModel
from mmquant.models.layers import has_own_weight, is_layer
from mmquant.models.reparameterize import reparameterizable

W8A8 = dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=8, granularity='channel'),
            activation=dict(type='mmquant.UniformAffineQuantizer', bits=8))
MIN_MAX = dict(type='mmquant.MinMaxObserver')
GRANULARITIES = ('layer', 'block', 'stage')
LOWEST = 20  # dB; where W8A8 has a lower SQNR, it is found out which tensors cost it
MOVES_BOXES = re.compile(r'\b(rpn|fc)_reg\b')  # names of layers in mmdet's heads


@dataclass(frozen=True)
class Coverage:
    """What was found about one model.

    Attributes:
        quantized, layers (int): Layers with quantized weights, and all layers with weights.
        units (dict[str, int]): Number of reconstruction units by granularity.
        sqnr (float): Signal-to-quantization-noise ratio of the outputs at W8A8 with min-max ranges, against
            those of the original float model, in dB.
        seconds (float): Of processor time: building, quantizing, two evaluations.
        reason (str): Of the failure; empty if there is none.
        unreached (int): Layers that the raw outputs do not depend on: auxiliary heads, branches for training.
        functional (int): Layers whose weight is used, but not by calling the layer, or is computed anew in each pass:
            these stay float.
        constant (int): Layers that read no data, such as tables of positions: what they compute is known beforehand.
        unnamed (int): Parameters of two or more axes that are neither quantized nor named as float in the plan.
        noise (dict): Of :class:`NoiseSources`, where the SQNR is below ``LOWEST``.
    """
    quantized: int = 0
    layers: int = 0
    units: dict[str, int] = field(default_factory=dict)
    sqnr: float = float('nan')
    seconds: float = 0.0
    reason: str = ''
    unreached: int = 0
    functional: int = 0
    constant: int = 0
    unnamed: int = 0
    noise: dict = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Every layer that the outputs depend on is quantized, and they are finite."""
        wanted = self.layers - self.unreached - self.constant
        return not self.reason and not self.unnamed and self.quantized == wanted and not math.isnan(self.sqnr)


def measure_coverage(build, shape: tuple[int, int, int], seed: int = 0) -> Coverage:
    """Quantize a model with random weights at W8A8 with min-max ranges.

    Args:
        build (Callable): Returns the float model.
        shape (tuple): (channels, height, width) of the one random image that calibrates and evaluates.
        seed (int): Of weights and image.
    """
    started = time.process_time()
    try:
        with torch.no_grad():
            found = merged_or_not(build, shape, seed, _measure)
    except Exception as error:  # whatever a model of the zoo may raise: it goes into the table
        return Coverage(seconds=time.process_time() - started, reason=told(error))
    return Coverage(seconds=time.process_time() - started, **found)


def told(error: Exception, most: int = 160) -> str:
    """An error in one line: its type, its text, and where it happened, without folders of this machine."""
    text = re.sub(r'/[^\s\'"]*/', '.../', ' '.join(str(error).split()))
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{type(error).__name__}: {text[:most]} ({place.name}, {osp.basename(place.filename)})'


def apart(measure: Callable, build, shape: tuple[int, int, int], limit: float, failed: Callable):
    """``measure(build, shape)`` with one thread, in a process of its own.

    A model that hangs, crashes or runs out of memory costs its own row only. The process is forked, so that packages
    imported before need not be imported again.

    Args:
        measure (Callable): Returns a result, also of a model that fails.
        build, shape: See :func:`measure_coverage`.
        limit (float): Seconds of processor time after which the process is ended, however busy the machine is; five
            times as many by the clock end it too.
        failed (Callable): What to return where there is no result, from ``seconds`` and ``reason``.
    """
    forks = multiprocessing.get_context('fork')
    receiver, sender = forks.Pipe(duplex=False)
    process = forks.Process(target=_measure_and_send, args=(sender, measure, build, shape, limit), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(5 * limit):
            return receiver.recv()
        return failed(reason=f'took longer than {5 * limit:g} s')
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return failed(seconds=limit, reason=f'took longer than {limit:g} s of processor time')
        return failed(reason=f'its process ended with exit code {process.exitcode} (-9: out of memory)')
    finally:
        process.kill()
        process.join()
        receiver.close()


def measure_apart(build, shape: tuple[int, int, int], limit: float) -> Coverage:
    """:func:`measure_coverage` in a process of its own, see :func:`apart`."""
    return apart(measure_coverage, build, shape, limit, Coverage)


def _measure_and_send(sender, measure, build, shape, limit: float) -> None:
    seconds = math.ceil(limit)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    torch.set_num_threads(1)  # threads of the parent process do not live here
    gc.disable()  # the process ends soon, and torch's exporter makes millions of objects that live until then
    sender.send(measure(build, shape))


def spread_weights(model: nn.Module) -> None:
    """Weights of standard deviation ``sqrt(2 / fan_in)`` (arXiv 1502.01852), so that the image reaches the outputs.

    With torch's own the signal of a deep net without trained normalization fades, and biases alone are left. Layers
    that move boxes get a hundredth, or none of them would stay in the image. Modules that hold tables and no layer
    (boxes that the search begins with, positions) get the values that they ask for.
    """
    for name, module in model.named_modules():
        if has_own_weight(module):
            gain = 0.01 if MOVES_BOXES.search(name) else 1.0
            module.weight.normal_(std=gain * (2 / module.weight[0].numel())**0.5)
        elif hasattr(module, 'init_weights'):
            parts = list(module.modules())
            if any(isinstance(m, nn.Embedding) for m in parts) and not any(is_layer(m) for m in parts):
                module.init_weights()


def fit_normalization(context: CalibrationContext) -> None:
    """One variance for each batch normalization: the mean square of what it reads of the image.

    Trained ones hold such statistics. Without them the signal doubles with every residual block: some nets overflow,
    and boxes leave the image.
    """

    def fit(module, inputs):
        if inputs[0].numel() and module.running_var is not None:
            module.running_var.fill_(inputs[0].square().mean())

    hooks = [m.register_forward_pre_hook(fit) for m in context.model.architecture.modules()
             if isinstance(m, _BatchNorm)]
    context.run(0)
    for hook in hooks:
        hook.remove()


def merged_or_not(build, shape: tuple[int, int, int], seed: int, measure: Callable, recipe: dict = W8A8):
    """``measure(model, shape, merge)`` of the wrapped model.

    With training-time branches merged; without where the model's own merging fails or changes its outputs.
    """
    for merge in (True, False):
        torch.manual_seed(seed)
        model = QuantizedModel(build(), recipe, 'random')
        merge = merge and bool(reparameterizable(model.architecture))
        try:
            return measure(model, shape, merge)
        except Exception:
            if not merge:
                raise


def calibrated(model: QuantizedModel, shape: tuple[int, int, int], merge: bool, insert: tuple = (InsertQuantizers(), )
               ) -> tuple[CalibrationContext, object]:
    """Random weights, one random image, quantizers with min-max ranges; and what the float model returned before."""
    spread_weights(model.architecture)
    context = CalibrationContext(model, [torch.randn(1, *shape)])
    fit_normalization(context)
    reference = tree_map_only(torch.Tensor, torch.clone, context.run(0))  # of the original, before the first change
    for step in (*((Reparameterize(),) if merge else ()), FoldBatchNorm(), *insert,
                 InitWeightRange(MIN_MAX), InitActivationRange(MIN_MAX)):
        step.run(context)
    return context, reference


def _measure(model: QuantizedModel, shape: tuple[int, int, int], merge: bool) -> dict:
    total = sum(is_layer(m) for m in model.architecture.modules())
    context, reference = calibrated(model, shape, merge)
    with model.frozen(*model.ready):
        quantized = context.run(0)
    sqnr = sqnr_db(*powers(reference, quantized))  # infinite for equal outputs
    noise = vars(noise_sources(model, lambda: context.run(0), reference)) if sqnr < LOWEST else {}
    layers = sum(is_layer(m) for m in model.architecture.modules())
    units = {g: len(model.units(g)) for g in GRANULARITIES}
    rest = [n for n, _ in model.plan.float_layers if is_layer(model.architecture.get_submodule(n))]
    constant = [n for n in rest if n in model.flow.calls_of and not any(c.inputs for c in model.flow.calls_of[n])]
    used = [n for n in rest if n in model.flow.calls_of and n not in constant]  # weights made anew in each pass
    used += functional_layers(context, [n for n in rest if n not in model.flow.calls_of])
    return dict(quantized=len(model.plan.weights), layers=layers, units=units, sqnr=sqnr, noise=noise,
                unnamed=len(unnamed(model)), unreached=len(rest) - len(used) - len(constant), functional=len(used),
                constant=len(constant), reason='' if total else 'no layer with weights')


def unnamed(model: QuantizedModel) -> list[str]:
    """Parameters of two or more axes that are neither quantized nor in a module that the plan names as float."""
    named = dict(model.plan.float_layers)
    return [n for n, p in model.architecture.named_parameters() if p.dim() > 1 and n.rpartition('.')[0] not in named
            and not (n.rpartition('.')[0] in model.plan.weights and n.endswith('.weight'))]


@torch.enable_grad()
def functional_layers(context: CalibrationContext, names: list[str]) -> list[str]:
    """Those of some layers whose weight the outputs depend on, as the gradient tells."""
    weights = {n: context.model.architecture.get_submodule(n)._parameters.get('weight') for n in names}
    weights = {n: w.requires_grad_() for n, w in weights.items() if w is not None}
    if not weights:
        return []
    with context.model.quantization(weights=False, activations=False):
        outputs = [x for x in float_tensors(context.run(0)) if x.requires_grad]
    if not outputs:
        return []
    gradients = torch.autograd.grad(sum(x.sum() for x in outputs), list(weights.values()), allow_unused=True)
    return [n for n, g in zip(weights, gradients) if g is not None]
