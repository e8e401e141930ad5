"""Whether what was planned is used: each inserted quantizer by a run of the model as it will run, on one batch."""
import contextlib

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmquant.models.layers import LAYER_TYPES
from mmquant.models.weight_reads import owners_of, read_by, storage_of
from mmquant.utils.contexts import hooked

# words of REMEDY's sentences
ONE = dict(quantizer='quantizer', computes='computes', its='its', them='it', has='has', does='does',
           itself='itself', **{'is': 'is'})
SEVERAL = dict(quantizer='quantizers', computes='compute', its='their', them='them', has='have', does='do',
               itself='themselves', **{'is': 'are'})
REMEDY = dict(
    weight='{computes} without {its} quantized weight. Where {its} forward was set on the instance (hooks of '
    'accelerate, patches), take that off first (accelerate.hooks.remove_hook_from_module(model, recurse=True), '
    'del layer.forward) or override forward in a class; where another module reads the weight for {them} '
    '(a fast path), let it call the layer',
    float='{has} a float weight that is read past the layer, by a reference to it kept elsewhere: read layer.weight',
    input='{does} not pass {its} input to {its} quantizer: call the module itself, without a forward set on the '
    'instance',
    output='{is} not called {itself}, but as module.forward(x), which passes over what stands behind it: call '
    'module(x)')


class _Stand(nn.Module):
    """In the place of a weight quantizer: a copy of the weight, so that readers are seen."""
    enabled = True

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.copy, self.called = storage_of(weight), weight.detach().clone(), False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.called = True
        return self.copy


class _Reads(TorchDispatchMode):
    """Notes the storages that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int | None] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.storages |= read_by(func, (args, kwargs))
        return func(*args, **(kwargs or {}))


def check_used(model, proof) -> None:
    """ValueError that names quantizers of weights, inputs and outputs which the batch of a proof passes by.

    RuntimeError if the float outputs are no longer those of the proof.
    """
    layers, called, reads = model.index.layers, set(), _Reads()
    stands = {name: _Stand(layer._parameters['weight']) for name, layer in layers.items()}
    watched = {name: q for name, q in model.index.activations.items() if _place(name)[1] in REMEDY}
    with model.quantization(weights=False, activations=False), \
            hooked(watched, lambda name, *_: called.add(name)), _replaced(layers, stands), reads:
        outputs = proof.reference.run(model)
    owners = owners_of(model.architecture)
    idle = [(name, 'weight') for name, stand in stands.items() if not stand.called or (
        isinstance(layers[name], LAYER_TYPES)  # no operators of mmcv
        and storage_of(stand.copy) not in reads.storages)]
    idle += [(name, 'float') for name, stand in stands.items()
             if stand.weight in reads.storages and owners[stand.weight] <= layers.keys()]
    idle += [_place(name) for name in watched if name not in called]
    for what in REMEDY:
        if names := [name for name, kind in idle if kind == what]:
            words = _words(names)
            raise ValueError(f'{len(names)} {words["quantizer"]} would do nothing: {remedy(what, names)}; '
                             f'or keep {words["them"]} float: quantizer.overrides='
                             f'[dict(pattern={names[0]!r}, w_bits=None, a_bits=None)]')
    if not proof.holds(outputs):
        proof.check(('the insertion of quantizers', ))


def remedy(what: str, names: list[str]) -> str:
    """What quantizers of a kind do not do, and what to change; ``names`` are their owners."""
    return f'{", ".join(names[:5])} {REMEDY[what].format_map(_words(names))}'


def _words(names: list[str]) -> dict[str, str]:
    return ONE if len(names) == 1 else SEVERAL


def _place(name: str) -> tuple[str, str]:
    """Owner and kind of an activation quantizer by its name in the index, such as ``'conv.input.0'``."""
    owner, _, what = name.rpartition('.')
    return _place(owner) if what.isdigit() else (owner, what)


@contextlib.contextmanager
def _replaced(layers: dict[str, nn.Module], stands: dict[str, nn.Module]):
    """Other weight quantizers for a while."""
    before = {name: layer.weight_quantizer for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight_quantizer = stands[name]
        yield
    finally:
        for name, layer in layers.items():
            layer.weight_quantizer = before[name]
