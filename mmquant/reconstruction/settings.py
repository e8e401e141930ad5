"""How units are reconstructed: everything a fit needs to know beside the unit, checked."""
from collections.abc import Mapping, Sequence

from mmquant.quantizers import Quantizer
from mmquant.reconstruction.mixers import Mixer
from mmquant.reconstruction.optimizers import trainings
from mmquant.reconstruction.terms import Regularizer, Term
from mmquant.registry import FIT_HOOKS, MIXERS, ROUNDINGS, TERMS
from mmquant.roundings import Rounding
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError, build, closest

TERMS_BY_DEFAULT = dict(unit=dict(type='mmquant.UnitLoss'), rounding=dict(type='mmquant.RoundingRegularizer'))
HOOKS_BY_DEFAULT = dict(stem=dict(type='mmquant.LeaveStem'), keep_best=dict(type='mmquant.KeepBest'))
QUANTIZED = (('weights', ), ('weights', 'activations'))
# What activation quantizers train; a recipe may name it where a model has none.
ACTIVATION_ROLE = 'activation_scale'


class Settings:
    """Settings of :func:`reconstruct`; see :class:`Reconstruction` for the arguments.

    Attributes:
        mode (tuple[bool, bool]): Whether (weights, activations) are quantized while a unit is fitted.
        stream (str), mixer (Mixer | None): Where a unit's inputs come from, and what mixes several in the fit.
        streams (dict): What those that are needed quantize: (weights, activations), or a context manager.
        held_out (int): Rows to keep out of the fit.
    """

    def __init__(self, quantize: Sequence[str], num_iters: int, batch_size: int, inputs: str | dict,
                 rounding: dict | None, train: dict, terms: dict | None, hooks: dict | None) -> None:
        if tuple(quantize) not in QUANTIZED:
            raise ConfigError(f'quantize must be one of {QUANTIZED}, got {quantize!r}')
        for key, value in dict(num_iters=num_iters, batch_size=batch_size).items():
            if not value > 0:
                raise ConfigError(f'{key} must be positive, got {value!r}')
        self.mode, self.num_iters, self.batch_size = (True, 'activations' in quantize), num_iters, batch_size
        self.pass_rows = 2 * batch_size  # of a forward pass outside of the fit: less memory than a step's gradients
        self.mixer = None if isinstance(inputs, str) else build(MIXERS, inputs, 'Reconstruction.inputs')
        self.stream = self.mixer.streams[0] if isinstance(self.mixer, Mixer) else inputs
        if self.mixer is None and inputs not in ('quant', 'float') or not isinstance(self.stream, str):
            raise ConfigError(f"inputs must be 'quant', 'float' or the config of a mixer, got {inputs!r}")
        self.rounding = rounding
        self.new_rounding()  # refuses what is none
        self.trainings = trainings(train, 'Reconstruction.train')
        built = _named(TERMS, terms, TERMS_BY_DEFAULT, 'Reconstruction.terms')
        self.regularizers = {n: t for n, t in built.items() if isinstance(t, Regularizer)}
        self.terms = {n: t for n, t in built.items() if isinstance(t, Term) and t.weight}
        if not self.terms:
            raise ConfigError('Reconstruction.terms must hold at least one term on outputs with a positive weight, '
                              f'such as dict(unit=dict(type="mmquant.UnitLoss")), got {terms!r}')
        self.hooks = _named(FIT_HOOKS, hooks, HOOKS_BY_DEFAULT, 'Reconstruction.hooks')
        self.held_out = max((hook.held_out for hook in self.hooks.values()), default=0)
        asked = {t.inputs for t in self.terms.values()} - {None}
        asked |= set(self.mixer.streams) if self.mixer else {self.stream}
        known = dict(quant=self.mode, float=(False, False), **(self.mixer.modes if self.mixer else {}))
        for name in asked - set(known):
            raise ConfigError(f'Reconstruction: there is no stream {name!r}; {closest(name, known)}')
        self.streams = {name: known[name] for name in known if name in asked | {'float'}}

    def new_rounding(self) -> Rounding | None:
        """A rounding that has not started, if roundings are learnt."""
        return None if self.rounding is None else build(ROUNDINGS, self.rounding, 'Reconstruction.rounding')

    # ---- what a model has for them ---------------------------------------------------------------------------------
    def activations(self, model, unit: Unit) -> dict[str, Quantizer]:
        """Activation quantizers of a unit, by place; none if activations are not quantized."""
        return model.activation_quantizers(unit) if self.mode[1] else {}

    def wanted(self, model, unit: Unit) -> bool:
        """Whether there is something to train in a unit, and no hook is against it."""
        layers = model.quantized_layers()
        own = [layers[n] for n in unit.layers if n in layers]
        owners = [(q.trainables(), q.bit_width) for q in self.activations(model, unit).values()]
        if self.rounding is None:
            owners += [(a.trainables(), x.weight_quantizer.bit_width) for x in own for a in x.slots]
        trains = any(t.lr and roles.get(role) and bits <= (t.max_bits or bits)
                     for roles, bits in owners for role, t in self.trainings.items())
        return (trains or bool(self.rounding is not None and own)) and all(
            hook.wanted(model, unit, trains) for hook in self.hooks.values())

    def check_roles(self, model) -> None:
        """Raise ConfigError for a role in ``train`` that nothing in the model has."""
        quantizers, layers = model.activation_quantizers(), model.quantized_layers()
        roles = {ACTIVATION_ROLE} if self.mode[1] and not quantizers else set()
        owners = [*(quantizers.values() if self.mode[1] else ()), *(a for x in layers.values() for a in x.slots)]
        roles = roles.union(*(owner.trainables() for owner in owners))
        if self.rounding is not None and layers:
            layer = min(layers.values(), key=lambda x: x.quantized_tensor.numel())
            rounding = self.new_rounding()
            rounding.start(layer.quantized_tensor, layer.weight_quantizer)
            roles |= set(rounding.roles())
        for role in (r for r in self.trainings if r not in roles):
            hint = f'; {closest(role, roles)}' if roles else (', since there is no rounding, no adapter and no '
                                                              'activation quantizer that is on')
            raise ConfigError(f'Reconstruction.train: nothing has the role {role!r}{hint}')


def _named(registry, given: Mapping | None, default: Mapping, where: str) -> dict:
    """Objects by name: what is given comes first, then the defaults that it does not name; None takes one away."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f'{where} must be a dict of configs by name, got {given!r}')
    merged = {**(given or {}), **{n: c for n, c in default.items() if n not in (given or {})}}
    return {n: build(registry, c, f'{where}.{n}') for n, c in merged.items() if c is not None}
