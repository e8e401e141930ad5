"""The quantized model: wraps a float model of mmpretrain, mmdet or plain PyTorch."""
import contextlib
import copy
import os

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils._pytree import tree_map_only

from mmquant.models import builder, checkpoint, layers
from mmquant.models.dataflow import DataFlow
from mmquant.models.detection import is_detector, plain_samples
from mmquant.models.made_with import structure
from mmquant.models.matmul import QuantizedMatmulOwner
from mmquant.models.plan import Plan
from mmquant.models.policy import QuantizerPolicy
from mmquant.models.quantizer_index import QuantizerIndex
from mmquant.models.reference import Reference
from mmquant.models.units import find_units
from mmquant.quantizers import Quantizer
from mmquant.registry import EXPORTERS, MODELS
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError

NEEDS_PLAIN_MEMORY = ('view size is not compatible', 'must be contiguous')  # in errors of torch and of mmcv's operators
EXPORTING = getattr(torch.compiler, 'is_exporting', lambda: False)  # torch 2.6 cannot say


@MODELS.register_module()
class QuantizedModel(BaseModel):
    """A float model with quantizers: calibration folds BatchNorm, inserts quantizers and sets their state.

    Args:
        architecture (dict | nn.Module): The float model or its config.
        quantizer (dict): Which tensors get which quantizers: see :class:`QuantizerPolicy`, also for errors.
        float_checkpoint (str | PathLike | None): Path or URL of the float weights; ``'random'`` keeps the
            random initialisation.
        data_preprocessor (dict | None): Handed to the architecture.

    Raises:
        ConfigError: For what :class:`QuantizerPolicy` refuses, and for a model of which a layer is quantized already.

    Attributes:
        reference (Reference | None): What it returned before its first change; see :meth:`remember`.
        structure (dict): What decides the float model's outputs beside its parameters; see :func:`structure`.
        plan (Plan | None): Quantized tensors and structural changes so far.
        flow (DataFlow | None): The latest record of :meth:`observe`.
        index (QuantizerIndex): The inserted quantizers.
    """

    def __init__(self, architecture, quantizer: dict, float_checkpoint: str | os.PathLike | None = None,
                 data_preprocessor: dict | None = None) -> None:
        policy = QuantizerPolicy(quantizer)  # first: its errors come before a model is built
        if isinstance(architecture, dict):
            default = {} if data_preprocessor is None else dict(data_preprocessor=data_preprocessor)
            architecture = MODELS.build(default | dict(architecture))
        _check_float(architecture)
        policy.check_block_types({type(m).__name__ for m in architecture.modules()})
        super().__init__(data_preprocessor=getattr(architecture, 'data_preprocessor', None))
        architecture.eval()  # of mmpretrain's backbones, returns None
        self.structure = structure(architecture)  # before it is changed
        layers.use_channels_last(architecture)  # here, so that a loaded checkpoint computes just the same
        layers.give_plain_memory(architecture)
        self.architecture = architecture
        self.float_checkpoint = None if float_checkpoint is None else os.fspath(float_checkpoint)
        self.quantizer_cfg, self.policy = quantizer, policy
        self.block_types = policy.block_types  # names of classes declared as blocks
        self.reference: Reference | None = None
        self.plan: Plan | None = None
        self.flow: DataFlow | None = None
        self.index = QuantizerIndex(architecture, Plan())
        self.plain_memory = False
        self.train(False)

    def forward(self, inputs, data_samples=None, mode: str = 'tensor'):
        """The wrapped model's forward.

        A model that looks at activations through a view (VGG), or pools corners (CornerNet), fails where channels lie
        last in memory: weights and inputs are laid out plainly from its first failure on.

        Several threads may run one model, but none may while a step runs or a switch is entered (:meth:`quantization`,
        :meth:`frozen`, whose state is that of all threads).
        """
        if EXPORTING():
            raise NotImplementedError('quantized models cannot be exported by torch.export: their kernels are no '
                                      'operators of torch. Use .export(path, images) for ONNX files, .save(path) and '
                                      'mmquant.load(model, path) to keep it')
        was_plain = self.plain_memory  # another thread may lay it out meanwhile
        try:
            return self._forward(inputs, data_samples, mode)
        except RuntimeError as error:
            if was_plain or not any(text in str(error) for text in NEEDS_PLAIN_MEMORY):
                raise
        layers.use_plain_memory(self.architecture)
        self.plain_memory = True
        return self._forward(inputs, data_samples, mode)

    def _forward(self, inputs, data_samples, mode: str):
        for quantizers in self.index.per_call.values():
            quantizers.position = 0
        if self.plain_memory:
            inputs = tree_map_only(torch.Tensor, torch.Tensor.contiguous, inputs)
        if isinstance(self.architecture, BaseModel):
            return self.architecture(inputs, data_samples, mode=mode)
        return self.architecture(inputs)

    def run(self, inputs, data_samples: list | None = None):
        """Raw outputs, without labels and post-processing, for what the data preprocessor returns as ``inputs``.

        ``data_samples`` give detectors the sizes of images; without them, images fill their whole area.
        """
        if self.flow is None or self.flow.mutated & set(self.flow.network_inputs):  # the model may write into them
            inputs = tree_map_only(torch.Tensor, torch.clone, inputs)
        return self.raw(inputs, data_samples)

    def raw(self, inputs, data_samples: list | None = None):
        """As :meth:`run`, but a model that writes into its inputs writes into these."""
        if data_samples is None and is_detector(self.architecture):
            data_samples = plain_samples(inputs)
        return self.forward(inputs, data_samples)

    def __getstate__(self) -> dict:
        """For pickling: without the data flow, which refers to functions of torch that cannot be found by name."""
        return {**self.__dict__, 'flow': None}

    def __deepcopy__(self, memo: dict) -> 'QuantizedModel':
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def train(self, mode: bool = True):
        """Stays in eval mode: quantized models have folded statistics and no dropout."""
        return super().train(False)

    def init_weights(self) -> None:
        """Nothing: weights come from ``float_checkpoint``."""

    remember, observe, edit, fold_batch_norm = builder.remember, builder.observe, builder.edit, builder.fold_batch_norm
    make_plan, insert_quantizers, set_bits = builder.make_plan, builder.insert_quantizers, builder.set_bits
    add_places = builder.add_places
    save, load = checkpoint.save, checkpoint.load

    def load_float_checkpoint(self) -> None:
        """Load the float weights; CheckpointError if they are missing, damaged or of another model."""
        checkpoint.load_float_weights(self.architecture, self.float_checkpoint)

    def units(self, granularity: str = 'block') -> list[Unit]:
        """Reconstruction units in execution order; needs a recorded data flow."""
        return find_units(self.architecture, self.flow, granularity, self.block_types)

    def per_call_within(self, unit: Unit, call: int) -> list[tuple[layers.PerCall, int]]:
        """Quantizers per call inside one call of a unit, and the number that the first of these calls has."""
        begin, end = unit.spans[call]
        return [(self.index.per_call[name], next(i for i, c in enumerate(self.flow.calls_of[name])
                                                 if begin <= c.enter <= end))
                for name in unit.layers if name in self.index.per_call]

    def quantized_layers(self) -> dict[str, nn.Module]:
        """Path -> layer whose weights are quantized."""
        return dict(self.index.layers)

    def weight_quantizers(self) -> dict[str, Quantizer]:
        """Path of the layer -> its weight quantizer."""
        return {n: m.weight_quantizer for n, m in self.index.layers.items()}

    def activation_quantizers(self, unit: Unit | None = None) -> dict[str, Quantizer]:
        """Path of the owner -> quantizer of its input, output or operands, shared ones once; or those of a unit."""
        return dict(self.index.activations) if unit is None else self.index.within(self.architecture, unit)

    @property
    def ready(self) -> tuple[bool, bool]:
        """Whether all quantizers of (weights, activations) have a range; those without cannot be switched on."""
        return (all(q.initialized for q in self.weight_quantizers().values()),
                all(q.initialized for q in self.activation_quantizers().values()))

    @contextlib.contextmanager
    def quantization(self, weights: bool, activations: bool):
        """Quantize weights and activations, or not, inside a ``with`` block; both off is the float model."""
        own = [x._modules['weight_quantizer'] for x in self.index.layers.values()]  # faster than a module's getattr
        with layers.enabled(own, weights), \
                layers.enabled(self.index.activations.values(), activations):
            yield self

    @contextlib.contextmanager
    def frozen(self, weights: bool, activations: bool):
        """As :meth:`quantization`, for inference: weights are quantized once, not in every forward pass."""
        with self.quantization(weights, activations), layers.fixed_weights(self.quantized_layers().values()):
            yield self

    def export(self, path: str | os.PathLike, images, **options):
        """Write ONNX files that integer kernels run; see :func:`mmquant.export.files.export`."""
        return EXPORTERS.get('onnx')(self, path, images, **options)

    @torch.no_grad()
    def decide(self) -> None:
        """Fix codes and offsets of all weights that have a range, nearest ones where nothing else was found.

        The quantized net computes what it did before, and needs no float weight of these layers any more.
        """
        for layer in self.quantized_layers().values():
            if layer.weight_quantizer.initialized and layer.weight_quantizer.codes is None:
                layer.weight_quantizer.decide(layer.quantized_tensor)


def _check_float(architecture: nn.Module) -> None:
    kinds = (QuantizedModel, layers.QuantizedLayer, QuantizedMatmulOwner, Quantizer)
    found = next((name or 'the model itself' for name, m in architecture.named_modules() if isinstance(m, kinds)), None)
    if found is not None:
        raise ConfigError(f'{found} is quantized already: a model is changed in place, and so is every model that '
                          'shares a layer with it. Build the float model again, or quantize a copy.deepcopy of it; to '
                          'change widths alone there is set_bits of the quantized model')
