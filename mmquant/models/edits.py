"""Structural changes of a model, as frozen values that a plan holds and a checkpoint saves.

An edit leaves the float outputs as they are; ``QuantizedModel.edit`` proves that on a batch. The order of edits counts:
branches are merged before BatchNorm is folded into what they became. A new kind of edit is a frozen dataclass of plain
fields, registered in ``EDITS``, with ``apply``; nothing else needs to know it.
"""
import difflib
from dataclasses import asdict, dataclass
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant.models.attention import split_attention
from mmquant.models.folding import become_identity, fold, not_plain
from mmquant.models.functional_layers import call_functional_layers
from mmquant.models.layers import use_plain_memory
from mmquant.models.output_affine import add_output_affine
from mmquant.models.reparameterize import reparameterize
from mmquant.registry import EDITS
from mmquant.utils.building import closest


class PlanError(ValueError):
    """A plan that cannot be read, or that does not fit the model."""


def planned_module(model: nn.Module, name: str, whose: str) -> nn.Module:
    """The submodule ``name``, or a PlanError that tells by ``whose`` what wants it."""
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, [n for n, _ in model.named_modules()], 1)
        raise PlanError(f'{whose}: the model has no module {name!r}' + (f' (closest: {near[0]!r})' if near else '') +
                        '. Is it the plan of another architecture?') from error


@dataclass(frozen=True)
class Edit:
    """One structural change; one with ``after_places`` changes quantized layers, so quantizers are inserted before."""
    after_places: ClassVar[bool] = False

    def apply(self, model: nn.Module) -> None:
        """Change the model in place."""
        raise NotImplementedError(f'{type(self).__name__} does not define apply(model)')

    @property
    def changed(self) -> tuple[str, ...]:
        """Modules whose own output may differ afterwards, though that of the model must not."""
        return ()

    def module(self, model: nn.Module, name: str) -> nn.Module:
        """The submodule ``name``; a PlanError that names the edit if it is gone."""
        return planned_module(model, name, str(self))

    def to_dict(self) -> dict:
        """Plain values: ``type`` and the fields."""
        return dict(type=type(self).__name__, **asdict(self))


def edit_from_dict(d: dict) -> Edit:
    """Inverse of :meth:`Edit.to_dict`; PlanError if the kind of edit is not registered."""
    cls = EDITS.get(d['type'])
    if cls is None:
        raise PlanError(f'the plan holds the unknown edit {d["type"]!r} ({closest(d["type"], EDITS.module_dict)}); '
                        'import the module that registers it')
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in d.items() if k != 'type'})


@EDITS.register_module()
@dataclass(frozen=True)
class Merged(Edit):
    """Training-time branches were merged by the modules' own ``switch_to_deploy``."""

    def apply(self, model: nn.Module) -> None:
        reparameterize(model)


@EDITS.register_module()
@dataclass(frozen=True)
class Folded(Edit):
    """A BatchNorm was folded into the layer before it; an identity stands in its place."""
    layer: str
    bn: str

    def apply(self, model: nn.Module) -> None:
        layer, bn = self.module(model, self.layer), self.module(model, self.bn)
        if not isinstance(bn, _BatchNorm):
            raise PlanError(f'{self}: {self.bn} is a {type(bn).__name__}, expected a BatchNorm')
        if why := not_plain(bn):
            raise PlanError(f'{self}: {self.bn} cannot be folded: {why}')
        fold(layer, bn)
        become_identity(bn)

    @property
    def changed(self) -> tuple[str, ...]:
        return (self.layer, )


@EDITS.register_module()
@dataclass(frozen=True)
class SplitAttention(Edit):
    """Every ``nn.MultiheadAttention`` got layers for its projections, but those whose weights something else reads."""
    skipped: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> None:
        split_attention(model, self.skipped)


@EDITS.register_module()
@dataclass(frozen=True)
class CallsLayers(Edit):
    """A module calls the linear layers whose weights it handed to ``F.linear``."""
    owner: str
    layers: tuple[str, ...]

    def apply(self, model: nn.Module) -> None:
        for name in (self.owner, *self.layers):
            self.module(model, name)
        call_functional_layers(model, {self.owner: self.layers})


@EDITS.register_module()
@dataclass(frozen=True)
class PlainMemory(Edit):
    """Weights lie plainly in memory, as something in the model reads tensors by the order of their memory."""

    def apply(self, model: nn.Module) -> None:
        use_plain_memory(model)


@EDITS.register_module()
@dataclass(frozen=True)
class ReadElsewhere(Edit):
    """Others than a layer read its weight, too: they get the quantized one."""
    layer: str

    def apply(self, model: nn.Module) -> None:
        self.module(model, self.layer).read_elsewhere = True


@EDITS.register_module()
@dataclass(frozen=True)
class AddOutputAffine(Edit):
    """A quantized layer got a factor and a bias for each output channel."""
    layer: str
    after_places: ClassVar[bool] = True

    def apply(self, model: nn.Module) -> None:
        add_output_affine(self.module(model, self.layer))
