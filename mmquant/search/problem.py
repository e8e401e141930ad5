"""The network's loss as a function of all its clips, evaluated from cached prefixes.

    f(x) = mean over calibration images of loss(network with scale_i = base_i * exp(x_i))

Consecutive points of a search mostly differ in one coordinate. What lies in front of that quantizer is then the same
as in the evaluation before, so it is kept (:class:`mmquant.calibration.stream.Stream`) and only the rest runs, with
one weight quantized anew. Every value equals that of a full forward pass to the bit.

With several processes each evaluates its own images; sums are reduced, so all see the same loss and go the same way.
"""
import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mmquant.calibration.context import CalibrationContext
from mmquant.losses.objectives import Objective
from mmquant.models import QuantizedModel
from mmquant.models.cost import macs_of_calls
from mmquant.models.layers import PerCall, QuantizedLayer, enabled, fix_weight, fixed_weights
from mmquant.models.matmul import QuantizedMatmulOwner
from mmquant.quantizers import Quantizer
from mmquant.utils.building import ConfigError
from mmquant.utils.distributed import sum_over_ranks
from mmquant.utils.hardware import autocast

GRADIENT_COST = 3  # image-forwards that one image costs forward and backward


@dataclass(frozen=True)
class Clip:
    """One quantizer; its clips are its values times one factor."""
    name: str  # 'weight of <layer>' or 'activation at <place>'
    tick: float  # where the data flow first meets it: what ended before does not depend on it
    quantizer: Quantizer
    layer: nn.Module | None = None  # of a weight quantizer


def find_clips(model: QuantizedModel) -> list[Clip]:
    """The quantizers of a model that are reached, in execution order; weights before inputs of the same layer."""
    calls = model.flow.calls_of
    met = defaultdict(list)  # quantizer -> ticks
    for name, module in model.architecture.named_modules():
        for call in calls.get(name, ()):
            if isinstance(module, QuantizedLayer) and module.input_quantizer is not None:
                source = module.input_quantizer
                met[source[call.occurrence] if isinstance(source, PerCall) else source].append(call.enter - 0.5)
            if isinstance(getattr(module, 'output_quantizer', None), Quantizer):
                met[module.output_quantizer].append(call.exit + 0.5)
            sites = module.matmul_quantizers.values() if isinstance(module, QuantizedMatmulOwner) else ()
            for q in (q for site in sites for q in site.values()):
                met[q].append(call.enter - 0.5)
    clips = [Clip(f'weight of {name}', calls[name][0].enter - 0.5, layer.weight_quantizer, layer)
             for name, layer in model.quantized_layers().items() if name in calls]
    clips += [Clip(f'activation at {name}', min(met[q]), q) for name, q in model.activation_quantizers().items()
              if q in met]
    return sorted(clips, key=lambda clip: clip.tick)


def shares_behind(model: QuantizedModel, ticks: list[float]) -> list[float]:
    """Share of the network's multiply-accumulates behind each tick, in 0..1."""
    macs = macs_of_calls(model.architecture, model.flow)
    total = sum(n for _, n in macs)
    return [sum(n for call, n in macs if call.enter > tick) / total for tick in ticks]


@dataclass
class Counts:
    """What a search has cost."""
    evaluations: int = 0  # of the loss
    undefined: int = 0  # of these, NaN or infinite
    gradients: int = 0  # gradient steps
    # Images of all processes times the share of the network (multiply-accumulates) that ran; see GRADIENT_COST.
    image_forwards: float = 0.0
    image_forwards_saved: float = 0.0  # what full-network evaluations would have cost on top


class ClipProblem:
    """The loss of a quantized model over the logarithms of its clips' factors.

    Use inside ``with problem:``. Points are vectors relative to the origin, the sizes of values that the model had at
    construction or at the last :meth:`settle`; ``best``, with ``best_loss``, is the best one evaluated since.

    Args:
        context (CalibrationContext): Images and model; its quantizers have ranges and its data flow is recorded.
        objective (Objective): Prepared with the same calibration images.
        amp (bool): Run in bfloat16 autocast.
        use_cache (bool): Keep prefixes. Default True; off, every evaluation runs the whole network.

    ConfigError if no quantizer is there to be searched, or a module is in training mode.
    """
    on_evaluation: Callable[[float], None] | None = None  # called with the loss after each

    def __init__(self, context: CalibrationContext, objective: Objective, amp: bool = False, use_cache: bool = True
                 ) -> None:
        self.context, self.model, self.objective = context, context.model, objective
        training = [name or type(m).__name__ for name, m in self.model.architecture.named_modules() if m.training]
        if training:
            raise ConfigError(f'{len(training)} modules are in training mode (first: {training[0]}), so dropout or '
                              'batch statistics would make the loss random: call model.eval()')
        self.amp, self.use_cache, self.clips = amp, use_cache, find_clips(self.model)
        if not self.clips:
            raise ConfigError('no quantizer is selected, so there are no clips to search: give bits to '
                              'quantizer.weight or quantizer.activation')
        ticks = [clip.tick for clip in self.clips]
        self.shares = shares_behind(self.model, ticks)
        self.heads = [ticks.index(t) for t in ticks]  # first coordinate of the same tick
        self.num_images, self.device = int(sum_over_ranks(sum(context.sizes))[0]), context.device
        self.counts = Counts()
        self._stack: contextlib.ExitStack | None = None
        self._stale: set = set()  # layers whose quantized weight is out of date
        self._read_origin()

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.clips)

    @property
    def weight_layers(self) -> list:
        """Layers whose weights are searched."""
        return [clip.layer for clip in self.clips if clip.layer is not None]

    # ---- the state of the model ------------------------------------------------------------------------------------
    def __enter__(self) -> 'ClipProblem':
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.model.quantization(weights=True, activations=True))
            stack.enter_context(fixed_weights(self.weight_layers))
            stack.enter_context(torch.backends.cudnn.flags(deterministic=True, benchmark=False))
            self._stack = stack.pop_all()
        self._stream = None
        return self

    def __exit__(self, *exc) -> None:
        self._stack.close()
        self._stream = None

    def _read_origin(self) -> None:
        self.base = [[x.detach().clone() for x in clip.quantizer.sizes()] for clip in self.clips]
        self._installed = (0.0, ) * self.size
        self._last: tuple[float, ...] | None = None
        self._last_loss = math.inf
        self.best, self.best_loss = self._installed, math.inf
        self._stream, self._front, self._prefix = None, -1, self._installed

    def settle(self) -> float:
        """Leave the model at the best point evaluated, which becomes the origin; returns its loss."""
        loss = self.best_loss
        self._install(self.best)
        self._read_origin()
        return loss

    def _install(self, x: tuple[float, ...]) -> None:
        for i, (clip, old, new) in enumerate(zip(self.clips, self._installed, x)):
            if old != new:
                for size, origin in zip(clip.quantizer.sizes(), self.base[i], strict=True):
                    size.copy_(origin * math.exp(new))
                clip.quantizer.constrain()
                if clip.layer is not None:
                    self._stale.add(clip.layer)
        self._installed = x

    # ---- values ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def loss(self, x: Sequence[float]) -> float:
        """Mean loss over the calibration images of all processes at ``x``; infinite where the network's loss is NaN."""
        x = tuple(float(v) for v in x)
        if x == self._last:
            return self._last_loss
        self._install(x)
        for layer in self._stale:
            fix_weight(layer)
        self._stale.clear()
        share = self._advance(x)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk in range(len(self.context.chunks)):
            with autocast(self.device, self.amp):
                output = self._stream.run_rest(chunk) if self._stream else self.context.run(chunk)
            total += self.objective(output, chunk)
        loss = sum_over_ranks(total.item())[0] / self.num_images
        counts = self.counts
        counts.evaluations += 1
        counts.image_forwards += share * self.num_images
        counts.image_forwards_saved += (1 - share) * self.num_images
        if not math.isfinite(loss):
            counts.undefined, loss = counts.undefined + 1, math.inf
        self._last, self._last_loss = x, loss
        if loss < self.best_loss:
            self.best, self.best_loss = x, loss
        if self.on_evaluation:
            self.on_evaluation(loss)
        return loss

    def along(self, i: int) -> Callable[[float], float]:
        """The loss along coordinate ``i`` from the best point so far, which is 0."""
        start = self.best
        return lambda t: self.loss([*start[:i], start[i] + float(t), *start[i + 1:]])

    def _advance(self, x: tuple[float, ...]) -> float:
        """Move the kept prefix as far as this point shares it with the one before; the share of the net to pay for."""
        if not self.use_cache:
            self._stream = None
            return 1.0
        if self._stream is None or x[:max(self._front, 0)] != self._prefix[:max(self._front, 0)]:
            self._stream, self._front = self.context.stream(None), -1
        share = 1.0 if self._front < 0 else self.shares[self._front]
        last = self._last or (math.nan, ) * self.size
        changed = next(i for i, (a, b) in enumerate(zip(x, last)) if a != b)
        front = self.heads[changed]
        if front > self._front:
            with autocast(self.device, self.amp):
                self._stream.advance_to(self.clips[front].tick)
            self._front = front
        self._prefix = x
        return share

    def gradient(self, x: Sequence[float], chunk: int, rows: torch.Tensor) -> tuple[float, list[float]]:
        """Mean loss of some rows of a chunk and its straight-through gradient at ``x``, averaged over processes.

        Models with pinned proposals, or whose images depend on each other, take the whole chunk instead.
        """
        self._install(tuple(float(v) for v in x))
        scales = [x for clip in self.clips for x in clip.quantizer.sizes()]
        rows = rows.to(self.device) if self.context.separate and not self.context.decisions.made else None
        count = self.context.sizes[chunk] if rows is None else len(rows)
        for scale in scales:
            scale.requires_grad_(True)
        layers = self.weight_layers
        try:
            with torch.enable_grad(), enabled([layer.weight_quantizer for layer in layers], True):
                with autocast(self.device, self.amp):
                    output = self.context.run(chunk, rows)
                loss = self.objective(output, chunk, rows) / count
            grads = torch.autograd.grad(loss, scales, materialize_grads=True)
        finally:
            for scale in scales:
                scale.requires_grad_(False)
            self._stale.update(layers)  # their forward has let go of the quantized weight
        self.counts.gradients += 1
        left = iter([(g * s).double().sum() for g, s in zip(grads, scales)])
        slopes = torch.stack([sum(next(left) for _ in clip.quantizer.sizes()) for clip in self.clips])
        world, count, *totals = sum_over_ranks(1, count, loss.item(), *slopes.tolist())
        self.counts.image_forwards += GRADIENT_COST * count
        loss, *slopes = (total / world for total in totals)
        return loss, slopes

    def check_deterministic(self) -> float:
        """Loss at the last point, evaluated twice; ConfigError if the two differ."""
        x = self._installed
        first = self.loss(x)
        self._last = self._stream = None
        second = self.loss(x)
        if first != second:
            raise ConfigError(f'the loss is not deterministic: {first!r}, then {second!r} at the same clips; switch '
                              'off dropout and other random parts of the model')
        return first
