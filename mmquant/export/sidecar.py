"""What a program needs to know beside an exported file: how images are prepared, what outputs mean, what was made."""
from __future__ import annotations

from importlib import metadata

from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.cost import model_cost
from mmquant.models.deploy_profiles import find_profile
from mmquant.version import __version__

FORMAT = 1


def sidecar(model: QuantizedModel, shape: tuple[int, ...], profile: str, float_layers: dict[str, str]) -> dict:
    """Plain values, the same for the same model.

    ``input``: shape (C, H, W), mean, std and channel order of the preprocessing, None where the model has none;
    ``classes``, ``strides`` of a detector's levels; ``layers``: bits of weights and inputs; ``float_layers`` and why;
    ``runtime``: settings without which ONNX Runtime computes something else; versions.
    """
    architecture, exporters = model.architecture, ('torch', 'onnx', 'onnxscript')
    layers = {x.name: dict(w_bits=x.w_bits, a_bits=x.a_bits) for x in model_cost(model, 1).layers}
    return dict(
        format=FORMAT, profile=profile, opset=find_profile(profile).opset,
        input=dict(shape=list(shape), **_preprocessing(getattr(architecture, 'data_preprocessor', None))),
        classes=_classes(architecture), strides=_strides(architecture), layers=layers,
        float_layers={**dict(model.plan.float_layers), **float_layers},
        runtime=dict(session_options={'session.x64quantprecision': '1'},
                     disabled_optimizers=['WeightBiasQuantization'] if float_layers or model.plan.float_layers else []),
        versions=dict(mmquant=__version__, **{name: metadata.version(name) for name in exporters}))


def _preprocessing(module: nn.Module | None) -> dict:
    mean, std = (getattr(module, name, None) for name in ('mean', 'std'))
    numbers = {name: None if x is None else [round(float(v), 6) for v in x.flatten()]
               for name, x in dict(mean=mean, std=std).items()}
    swaps = getattr(module, 'to_rgb', None)
    swaps = getattr(module, '_channel_conversion', False) if swaps is None else swaps
    return dict(numbers, swap_channels=bool(swaps), pad_size_divisor=getattr(module, 'pad_size_divisor', 1))


def _classes(architecture: nn.Module) -> list[str] | None:
    meta = getattr(architecture, 'dataset_meta', None) or {}
    names = meta.get('classes') or getattr(architecture, 'CLASSES', None)
    return None if names is None else list(names)


def _strides(architecture: nn.Module) -> list | None:
    for module in architecture.modules():
        generator = getattr(module, 'prior_generator', None)
        if generator is not None:
            return [list(x) if isinstance(x, (tuple, list)) else x for x in generator.strides]
    return None
