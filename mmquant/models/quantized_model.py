"""The quantized model: wraps a float model of mmpretrain, mmdet or plain PyTorch."""
from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils._pytree import tree_map_only

from mmquant.models.attention import split_attention
from mmquant.models.checkpoint import CheckpointError, load_float_weights, read_quantized, save_quantized
from mmquant.models.dataflow import DataFlow, record
from mmquant.models.detection import decoders, is_detector, no_tensors, plain_samples
from mmquant.models.folding import FoldedBatchNorm, ensure_bias, fold, foldable_pairs, replace_by_identity
from mmquant.models.functional_layers import call_functional_layers, find_functional_layers
from mmquant.models.layers import (
    PerCall,
    QuantizedLayer,
    channel_axis,
    enabled,
    fixed_weights,
    give_plain_memory,
    has_own_weight,
    quantize_layer,
    quantize_output,
    use_channels_last,
    use_plain_memory,
)
from mmquant.models.matmul import OPERANDS, QuantizedMatmulOwner, quantize_matmuls
from mmquant.models.output_affine import add_output_affine
from mmquant.models.placement import Plan, place_quantizers
from mmquant.models.policy import BitPolicy
from mmquant.models.reparameterize import reparameterize
from mmquant.models.units import find_units
from mmquant.quantizers import Quantizer
from mmquant.registry import MODELS, QUANTIZERS
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError, build, check_keys

NEEDS_PLAIN_MEMORY = ('view size is not compatible', 'must be contiguous')  # in errors of torch and of mmcv's operators
_QUANTIZER_KEYS = ('weight', 'activation', 'matmul_bits', 'overrides', 'block_types', 'scope', 'per_call',
                   'depthwise_channels')


@MODELS.register_module()
class QuantizedModel(BaseModel):
    """A float model with quantizers.

    ``forward(inputs, data_samples, mode)`` is the wrapped model's own. A fresh instance is float; calibration folds
    BatchNorm, inserts quantizers (:meth:`insert_quantizers`) and sets their state.

    Args:
        architecture (dict | nn.Module): The float model or its config.
        quantizer (dict): ``weight`` and ``activation``: configs of quantizers with ``bits`` (``None``: float);
            ``matmul_bits``, ``overrides``, ``scope``: see :class:`BitPolicy`; ``block_types``: classes that are units
            beside those found by their residual add; ``per_call``, ``depthwise_channels``: see
            :func:`place_quantizers`.
        float_checkpoint (str | None): Path or URL of the float weights; ``'random'`` keeps the random initialisation.
        data_preprocessor (dict | None): Handed to the architecture.

    Raises:
        ConfigError: For unknown keys or types and bits outside 2..16.
    """

    def __init__(self, architecture, quantizer: dict, float_checkpoint: str | None = None,
                 data_preprocessor: dict | None = None) -> None:
        check_keys(quantizer, _QUANTIZER_KEYS, 'quantizer')
        if isinstance(architecture, dict):
            architecture = dict(architecture)
            if data_preprocessor is not None:
                architecture.setdefault('data_preprocessor', data_preprocessor)
            architecture = MODELS.build(architecture)
        super().__init__(data_preprocessor=getattr(architecture, 'data_preprocessor', None))
        architecture.eval()  # of mmpretrain's backbones, returns None
        use_channels_last(architecture)  # here, so that a loaded checkpoint computes just what the calibrated model did
        give_plain_memory(architecture)
        self.architecture = architecture
        self.float_checkpoint = float_checkpoint
        self.quantizer_cfg = quantizer
        self.policy = _policy(quantizer)
        self.plan: Plan | None = None
        self.flow: DataFlow | None = None
        self._per_call: list[PerCall] = []
        self._plain_memory = False
        self.train(False)

    # ---- running -------------------------------------------------------------------------------------------------
    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """The wrapped model's forward.

        A model that looks at activations through a view (VGG), or pools corners (CornerNet), fails where channels lie
        last in memory, so its weights and inputs are laid out plainly from its first failure on.
        """
        try:
            return self._forward(inputs, data_samples, mode)
        except RuntimeError as error:
            if self._plain_memory or not any(text in str(error) for text in NEEDS_PLAIN_MEMORY):
                raise
        use_plain_memory(self.architecture)
        self._plain_memory = True
        return self._forward(inputs, data_samples, mode)

    def _forward(self, inputs, data_samples, mode: str):
        for module in self._per_call:
            module.position = 0
        if self._plain_memory:
            inputs = tree_map_only(torch.Tensor, torch.Tensor.contiguous, inputs)
        if isinstance(self.architecture, BaseModel):
            return self.architecture(inputs, data_samples, mode=mode)
        return self.architecture(inputs)

    def run(self, inputs, data_samples: list | None = None):
        """Raw outputs for preprocessed inputs, without labels and post-processing; ``inputs`` stay as they are.

        Args:
            inputs: What the data preprocessor returns as ``inputs``.
            data_samples (list | None): Image sizes for detectors; without them, images fill their whole area.
        """
        if self.flow is None or self.flow.mutated & set(self.flow.network_inputs):  # the model may write into them
            inputs = tree_map_only(torch.Tensor, torch.clone, inputs)
        return self._raw(inputs, data_samples)

    def _raw(self, inputs, data_samples):
        if data_samples is None and is_detector(self.architecture):
            data_samples = plain_samples(inputs)
        return self.forward(inputs, data_samples)

    def train(self, mode: bool = True):
        """Stays in eval mode: quantized models have folded statistics and no dropout."""
        return super().train(False)

    def init_weights(self) -> None:
        """Nothing: weights come from ``float_checkpoint``."""

    # ---- building ------------------------------------------------------------------------------------------------
    def load_float_checkpoint(self) -> None:
        """Load the float weights.

        Raises:
            CheckpointError: If the file is missing, unreachable, damaged or of another model.
        """
        load_float_weights(self.architecture, self.float_checkpoint)

    def observe(self, inputs, data_samples: list | None = None) -> DataFlow:
        """Record the data flow of one small batch in float mode; arguments as in :meth:`run`.

        Raises:
            ValueError: If the model returns no tensor that it computed from the inputs.
        """
        returned = []
        with self.quantization(weights=False, activations=False):
            copied = tree_map_only(torch.Tensor, torch.clone, inputs)
            if self.flow is None:  # it may fail and lay out its memory anew, which is no part of its data flow
                self.run(inputs, data_samples)
            self.flow = record(self.architecture, lambda x: returned.append(self._raw(x, data_samples)), copied,
                               decoders(self.architecture))
        if not self.flow.calls[0].outputs:
            raise ValueError(no_tensors(self.architecture, returned[0]))
        return self.flow

    def fold_batch_norm(self, inputs, data_samples: list | None = None) -> list[tuple[str, str]]:
        """Fold each BatchNorm that alone reads a layer's output; returns the pairs (layer, BatchNorm)."""
        pairs = foldable_pairs(self.architecture, self.observe(inputs, data_samples))
        for layer, bn in pairs:
            fold(self.architecture.get_submodule(layer), self.architecture.get_submodule(bn))
            replace_by_identity(self.architecture, bn)
        before = self.plan or Plan()
        self.plan = replace(before, folded=(*before.folded, *pairs))
        return pairs

    def reparameterize(self) -> int:
        """Merge training-time branches by the modules' own ``switch_to_deploy``; returns the number of modules."""
        merged = reparameterize(self.architecture)
        self.plan = replace(self.plan or Plan(), reparameterized=True)
        return merged

    def make_plan(self, inputs, data_samples: list | None = None) -> Plan:
        """Decide where quantizers sit, without inserting them; attention gets layers for its projections.

        Modules that read a layer's weight are made to call the layer.
        """
        if split_attention(self.architecture):
            self.plan = replace(self.plan or Plan(), split_attention=True)
        flow = self.observe(inputs, data_samples)
        if any(has_own_weight(m) and n not in flow.calls_of for n, m in self.architecture.named_modules()):
            found = find_functional_layers(self.architecture, lambda: self.run(inputs, data_samples))
            if found:
                call_functional_layers(self.architecture, found)
                self.plan = replace(self.plan or Plan(), functional={**(self.plan or Plan()).functional, **found})
                flow = self.observe(inputs, data_samples)
        return place_quantizers(self.architecture, flow, self.policy, self.block_types, self.plan,
                                self.quantizer_cfg.get('per_call', False),
                                self.quantizer_cfg.get('depthwise_channels', False))

    def insert_quantizers(self, plan: Plan) -> None:
        """Turn float layers into quantized ones as planned; a loaded plan also repeats what came before."""
        if plan.reparameterized:
            reparameterize(self.architecture)
        if plan.split_attention:
            split_attention(self.architecture)
        call_functional_layers(self.architecture, plan.functional)
        known = set(self.plan.folded) if self.plan else set()
        for layer, bn in plan.folded:
            if (layer, bn) not in known:
                ensure_bias(self.architecture.get_submodule(layer))
                self.architecture.get_submodule(layer).folded_bn = FoldedBatchNorm()
                replace_by_identity(self.architecture, bn)
        shared = {}
        for item in plan.layers:
            if item.w_bits is None and item.a_bits is None:
                continue
            layer = self.architecture.get_submodule(item.name)
            sources = shared.get(item.shares)
            if sources is None:
                sources = [self._activation(item.a_bits, item.channels) for _ in range(item.calls)
                           if item.a_bits is not None]
            shared[item.name] = sources
            source = PerCall(sources) if len(sources) > 1 else next(iter(sources), None)
            quantize_layer(layer, self._weight(item.w_bits, layer), source)
        for item in plan.outputs:
            quantize_output(self.architecture.get_submodule(item.name), self._activation(item.bits))
        for item in plan.matmuls:
            sites = {site: nn.ModuleDict({role: self._activation(item.bits) for role in OPERANDS[kind]})
                     for site, kind in item.sites.items()}
            quantize_matmuls(self.architecture.get_submodule(item.name), sites)
        for name in plan.affine:
            add_output_affine(self.architecture.get_submodule(name))
        self.plan = plan
        self._per_call = [m for m in self.architecture.modules() if isinstance(m, PerCall)]
        self.train(False)
        self.to(next(self.architecture.parameters()).device)

    def add_output_affines(self, names) -> None:
        """Give quantized layers a factor and a bias for each output channel; they change nothing yet."""
        for name in names:
            add_output_affine(self.architecture.get_submodule(name))
        self.plan = replace(self.plan, affine=(*self.plan.affine, *names))

    def _weight(self, bits: int | None, layer: nn.Module) -> Quantizer:
        cfg = dict(self.quantizer_cfg['weight'], bits=bits or 8)
        if cfg.get('granularity') in ('channel', 'group') or cfg.get('keep_mean'):
            cfg['channel_axis'] = channel_axis(layer)
        quantizer = build(QUANTIZERS, cfg, 'quantizer.weight')
        quantizer.allocate(layer.weight.shape)
        quantizer.enabled = bits is not None
        return quantizer

    def _activation(self, bits: int, channels: int = 0) -> Quantizer:
        cfg = dict(self.quantizer_cfg['activation'], bits=bits)
        if channels:
            cfg.update(granularity='channel', channel_axis=1)
        quantizer = build(QUANTIZERS, cfg, 'quantizer.activation')
        if channels:
            quantizer.allocate((1, channels, 1, 1))
        return quantizer

    # ---- looking inside ------------------------------------------------------------------------------------------
    @property
    def block_types(self) -> tuple[str, ...]:
        """Names of classes declared as blocks."""
        return tuple(self.quantizer_cfg.get('block_types', ()))

    def units(self, granularity: str = 'block') -> list[Unit]:
        """Reconstruction units in execution order; needs a recorded data flow."""
        return find_units(self.architecture, self.flow, granularity, self.block_types)

    def per_call_within(self, unit: Unit, call: int) -> list[tuple[PerCall, int]]:
        """Quantizers per call inside one call of a unit, and the number that the first of these calls has."""
        begin, end = unit.spans[call]
        found = []
        for name in unit.layers:
            quantizer = getattr(self.architecture.get_submodule(name), 'input_quantizer', None)
            if isinstance(quantizer, PerCall):
                found.append((quantizer, next(i for i, c in enumerate(self.flow.calls_of[name])
                                              if begin <= c.enter <= end)))
        return found

    def quantized_layers(self) -> dict[str, nn.Module]:
        """Path -> layer whose weights are quantized."""
        planned = {x.name for x in self.plan.layers if x.w_bits is not None} if self.plan else set()
        return {n: m for n, m in self.architecture.named_modules() if isinstance(m, QuantizedLayer) and n in planned}

    def weight_quantizers(self) -> dict[str, Quantizer]:
        """Path of the layer -> its weight quantizer."""
        return {n: m.weight_quantizer for n, m in self.quantized_layers().items()}

    def activation_quantizers(self) -> dict[str, Quantizer]:
        """Path of the owner -> quantizer of its input, output or operands; shared ones once."""
        found = {}
        for name, module in self.architecture.named_modules():
            if isinstance(module, QuantizedLayer) and isinstance(module.input_quantizer, PerCall):
                found |= {f'{name}.input.{k}': q for k, q in enumerate(module.input_quantizer)}
            elif isinstance(module, QuantizedLayer) and module.input_quantizer is not None:
                found[f'{name}.input'] = module.input_quantizer
            if isinstance(getattr(module, 'output_quantizer', None), Quantizer):
                found[f'{name}.output'] = module.output_quantizer
            if isinstance(module, QuantizedMatmulOwner):
                found |= {f'{name}.matmul{k}.{role}': q for k, site in module.matmul_quantizers.items()
                          for role, q in site.items()}
        return {name: q for name, q in found.items() if q is next(v for v in found.values() if v is q)
                and name == next(k for k, v in found.items() if v is q)}

    @property
    def ready(self) -> tuple[bool, bool]:
        """Whether all quantizers of (weights, activations) have a range; those without cannot be switched on."""
        return (all(q.initialized for q in self.weight_quantizers().values()),
                all(q.initialized for q in self.activation_quantizers().values()))

    @contextlib.contextmanager
    def quantization(self, weights: bool, activations: bool):
        """Quantize weights and activations, or not, inside a ``with`` block; both off is the float model."""
        with enabled(self.weight_quantizers().values(), weights), \
                enabled(self.activation_quantizers().values(), activations):
            yield self

    @contextlib.contextmanager
    def frozen(self, weights: bool, activations: bool):
        """As :meth:`quantization`, for inference: weights are quantized once, not in every forward pass."""
        with self.quantization(weights, activations), fixed_weights(self.quantized_layers().values()):
            yield self

    # ---- saving --------------------------------------------------------------------------------------------------
    def save(self, path: str, meta: dict | None = None) -> str:
        """Write state and plan (tensors and plain values only), atomically; returns the path."""
        return save_quantized(path, self.architecture, self.plan.to_dict(), meta or {})

    def load(self, path: str) -> dict:
        """Rebuild quantizers from a checkpoint of :meth:`save` and load their state; returns its meta.

        Raises:
            CheckpointError: If the file is missing, damaged, or of another model.
        """
        data = read_quantized(path)
        try:
            plan = Plan.from_dict(data['plan'])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f'{path} holds a quantization plan that cannot be read ({type(error).__name__}: '
                                  f'{error}); it is damaged or of another version. Quantize again with tools/ptq.py'
                                  ) from error
        if not any(isinstance(m, QuantizedLayer) for m in self.architecture.modules()):
            self._check_fits(plan, path)
            self.insert_quantizers(plan)
        elif plan != self.plan:
            raise CheckpointError(f'{path} cannot be loaded: the model is already quantized, at other places or bits; '
                                  'build a fresh QuantizedModel')
        load_float_weights(self.architecture, path, data['state_dict'])
        return data['meta']

    def _check_fits(self, plan: Plan, path: str) -> None:
        own = {name for name, _ in self.architecture.named_modules()}
        lost = [x.name for x in plan.layers if x.name not in own]
        if lost and not plan.reparameterized and not plan.split_attention:
            raise CheckpointError(f'{path} does not fit the model: {len(lost)} of its {len(plan.layers)} layers do not '
                                  f'exist here (first: {lost[0]}). Is it the checkpoint of another architecture?')


def _policy(quantizer: dict) -> BitPolicy:
    blocks = quantizer.get('block_types', ())
    if not isinstance(blocks, (list, tuple)) or not all(isinstance(x, str) for x in blocks):
        raise ConfigError(f'quantizer.block_types must be a list of class names, got {blocks!r}')
    for key in ('weight', 'activation'):
        if not isinstance(quantizer.get(key), dict):
            raise ConfigError(f'quantizer.{key}: expected dict(type=..., bits=...), got {quantizer.get(key)!r}; write '
                              'bits=None to keep it float')
        build(QUANTIZERS, {**quantizer[key], 'bits': quantizer[key].get('bits', 8) or 8}, f'quantizer.{key}')
    try:
        return BitPolicy(quantizer['weight'].get('bits', 8), quantizer['activation'].get('bits', 8),
                         quantizer.get('matmul_bits', 'same'), quantizer.get('overrides', ()), quantizer.get('scope'))
    except ValueError as error:
        raise ConfigError(f'quantizer: {error}') from error
