"""Quantize any ``torch.nn.Module`` from Python: no config, no Runner, the same engine."""
import os
import os.path as osp
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import nn

import mmquant
from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.algorithms.step_list import build_steps, ordered_steps, tuned
from mmquant.analysis.agreement import agreement, agreement_line
from mmquant.analysis.tables import short_summary
from mmquant.apis.images import check_images, collect_images, leave_inference_mode
from mmquant.models import QuantizedModel
from mmquant.models.policy import merged_config
from mmquant.models.unchanged import unchanged_on_error
from mmquant.reconstruction.undecided import undecided_text
from mmquant.utils.building import ConfigError, check_keys, check_types, closest
from mmquant.utils.progress import progress

AFFINE = dict(type='mmquant.UniformAffineQuantizer')
AFFINE_WEIGHT = dict(AFFINE, granularity='channel')
OF_STEPS = ('num_iters', 'batch_size', 'lr')
OF_QUANTIZER = ('block_types', 'matmul_bits', 'scope', 'per_call', 'depthwise_channels')


def config_root() -> str:
    """Folder of the shipped configs: beside the package in a checkout, inside it when installed."""
    package = osp.dirname(mmquant.__file__)
    for folder in (osp.join(package, '.mim', 'configs'), osp.join(osp.dirname(package), 'configs')):
        if osp.isdir(osp.join(folder, '_base_', 'algorithms')):
            return folder
    raise FileNotFoundError(f'the configs folder is neither in {package}/.mim nor beside it; reinstall mmquant')


def recipe_steps(recipe: str | dict | list, **numbers) -> dict[str, dict | Step]:
    """Steps of a recipe by name, in the order in which they run; ConfigError for an unknown recipe, step or key.

    Args:
        recipe (str | dict | list): Name of a file in ``configs/_base_/algorithms`` (``'nearest'``, ``'brecq'``, ...),
            or the steps themselves; see :func:`ordered_steps`.
        numbers: ``num_iters``, ``batch_size``, ``lr``; see :func:`tuned`.
    """
    if not recipe or not isinstance(recipe, (str, Mapping, list, tuple)):
        raise ConfigError(f'recipe must be a name, or at least one step, got {recipe!r}')
    return tuned(ordered_steps(_shipped_steps(recipe) if isinstance(recipe, str) else recipe, 'recipe'), **numbers)


def _shipped_steps(recipe: str) -> Mapping:
    """The variable that is named as the method: ``brecq`` in ``brecq.py``, ``brecq_short.py``, ``brecq_det.py``."""
    path = osp.join(config_root(), '_base_', 'algorithms', f'{recipe}.py')
    if not osp.isfile(path):
        names = [n[:-3] for n in os.listdir(osp.dirname(path)) if n.endswith('.py')]
        raise ConfigError(f'unknown recipe {recipe!r}; {closest(recipe, names)}')
    cfg, method = Config.fromfile(path), recipe
    while method not in cfg and '_' in method:
        method = method.rpartition('_')[0]
    if method not in cfg:
        raise ConfigError(f'{path} has no variable {method!r} with the steps of the method')
    return cfg[method]


@dataclass(frozen=True)
class Settings:
    """What may be given to :func:`quantize` beside its own arguments.

    Attributes:
        num_iters, batch_size, lr (number | dict | None): Training steps per unit, rows of each, and rates, instead of
            the recipe's: for all steps, or by their names (``dict(weights=1000, activations=500)``), rates also by what
            trains (``dict(weights=dict(rounding=1e-2))``).
        seed (int): Same seed, same result. Default 0.
        amp (bool): Reconstruct in bfloat16 autocast. Default False.
        chunk_size (int): Images of a forward pass outside reconstruction. Default 64.
        block_types, matmul_bits, scope, per_call, depthwise_channels: See :class:`QuantizerPolicy`.
    """
    num_iters: int | dict | None = None
    batch_size: int | dict | None = None
    lr: float | dict | None = None
    seed: int = 0
    amp: bool = False
    chunk_size: int = 64
    block_types: tuple = ()
    matmul_bits: int | str | None = 'same'
    scope: tuple | None = None
    per_call: bool = False
    depthwise_channels: bool = False

    def __post_init__(self) -> None:
        for name, least in (('chunk_size', 1), ('seed', 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f'quantize: {name} must be at least {least}, a whole number, got {value!r}')


@torch.inference_mode(False)
def quantize(model: nn.Module, calib_loader: Iterable, recipe: str | dict | list = 'brecq', w_bits: int | None = 4,
             a_bits: int | None = 4, *, weight: dict | None = None, activation: dict | None = None,
             overrides: list[dict] | None = None, **settings) -> QuantizedModel:
    """Quantize a model after training; after an error the model is as it was.

    Args:
        model (nn.Module): Float model with loaded weights; it is changed in place and called as ``model(images)``.
        calib_loader (Iterable): Yields image tensors (N, C, H, W), preprocessed as the model expects, or tuples, lists
            and dicts that hold them beside labels, which are not used; see :func:`collect_images`.
        recipe (str | dict | list): Name of a recipe, or steps by name; see :func:`recipe_steps`. Default ``'brecq'``;
            ``'nearest'`` trains nothing and takes seconds.
        w_bits, a_bits (int | None): Bits of weights and activations; None: float. Default 4.
        weight, activation (dict | None): Quantizers, such as ``dict(type='mmquant.APoTQuantizer')``; ``bits`` are
            ``w_bits`` and ``a_bits`` if not given. Default: ``UniformAffineQuantizer``, weights per output channel,
            symmetric at 8 bits, as integer kernels take them; a dict without ``type`` changes these.
        overrides (list[dict] | None): See :class:`QuantizerPolicy`. Default: first and last layer uniform at 8 bits.
        settings: ``num_iters``, ``batch_size``, ``lr``, ``seed``, ``block_types``, ...: see :class:`Settings`.

    Returns:
        QuantizedModel: Call it like the model; codes of all weights are decided, ``.save(path)`` writes a checkpoint.

    Raises:
        ConfigError: For bits that a grid does not take, an unknown recipe, step, setting or key, and for a loader that
            yields no images, or such that the model does not run on.
        ValueError: For an empty or non-finite calibration set.
    """
    check_keys(settings, Settings.__dataclass_fields__, 'quantize')
    check_types(settings, Settings, 'quantize')
    chosen = Settings(**settings)
    spec = dict(weight={'bits': w_bits, **merged_config(_weight(w_bits), weight or {})},
                activation={'bits': a_bits, **merged_config(AFFINE, activation or {})},
                **{key: getattr(chosen, key) for key in OF_QUANTIZER})
    spec['overrides'] = _first_and_last(spec) if overrides is None else overrides
    steps = build_steps(recipe_steps(recipe, **{key: getattr(chosen, key) for key in OF_STEPS}), 'recipe')
    _check_eager(model)
    chunks = collect_images(calib_loader, model, chosen.chunk_size)
    leave_inference_mode(model)
    with unchanged_on_error(model):
        model.eval()
        wrapped = QuantizedModel(model, spec, 'random')
        context = CalibrationContext(wrapped, chunks, chosen.seed, chosen.amp, progress=progress)
        check_images(context)
        run_steps(context, steps)
        wrapped.decide()
    if wrapped.plan:
        print_log(short_summary(wrapped, next((s.unit for s in steps if s.unit), 'block')), 'current')
        print_log(agreement_line(agreement(wrapped, chunks[:1])), 'current')
    if text := undecided_text(context.records):
        print_log(text, 'current')  # mmengine's logger would not repeat the warning of the step
    return wrapped


def _check_eager(model) -> None:
    """ConfigError for what has no layers that can be exchanged."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError('model is TorchScript, whose layers cannot be exchanged; give the eager model')
    # the module of such a program is a graph of operators too; one of torch.fx.symbolic_trace calls layers, which can
    operators = isinstance(model, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)
    if operators or isinstance(model, torch.export.ExportedProgram):
        raise ConfigError('model is a program of torch.export, whose operators are no layers that could be exchanged; '
                          'give the eager model that was exported')
    if not isinstance(model, nn.Module):
        raise ConfigError(f'model must be a torch.nn.Module with its weights loaded, got {type(model).__name__}')


def _weight(bits: int | None) -> dict:
    """The default quantizer of weights; at 8 bits without zero points, which integer kernels do not take."""
    return dict(AFFINE_WEIGHT, **({'bits': 8, 'symmetric': True} if bits == 8 else {}))


def _first_and_last(spec: dict) -> list[dict]:
    """Uniform quantizers of 8 bits at both ends, whatever the others are; what is float stays so."""
    first, last = dict(position='first'), dict(position='last')
    if spec['weight']['bits']:
        first['weight'] = last['weight'] = _weight(8)
    if spec['activation']['bits']:
        first['output'] = last['input'] = dict(AFFINE, bits=8)
    return [first, last]


@torch.enable_grad()
def run_steps(context: CalibrationContext, steps: list[Step]) -> None:
    """Run steps one after another; reconstruction needs gradients, also where the caller has switched them off."""
    for index, step in enumerate(steps):
        context.step_index, context.state = index, {}
        step.run(context)
