"""Unit-wise reconstruction: BRECQ (arXiv 2102.05426), and by its settings AdaRound, QDrop, RepAPQ and their relatives.

    min over what trains    E |unit_q(x_q) - unit(x)|^p  +  terms at the end of the stage or net  +  penalties

x_q is the output of the prefix with its final quantized weights (and activations), x the float one; unit_q has
quantized weights, and activations if ``quantize`` names them. A method is what trains, by what terms, on what inputs:

    BRECQ    two steps: roundings with float activations; then activation scales with decided weights, on float inputs
    QDrop    one step: roundings and activation scales, on inputs and activations quantized at random
    RepAPQ   one step: weights, scales and affines by absolute errors, with a second term at the end of the stage
"""
from collections.abc import Sequence

from mmengine.logging import MMLogger

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.reconstruction import Settings, reconstruct
from mmquant.reconstruction.undecided import undecided_text
from mmquant.registry import STEPS
from mmquant.structures.unit import GRANULARITIES
from mmquant.utils.building import ConfigError
from mmquant.utils.contexts import sound_gradients


@STEPS.register_module()
class Reconstruction(Step):
    """Reconstruct unit after unit. What has an entry in ``train`` trains, and nothing else.

    Args:
        unit (str): ``'layer'``, ``'block'`` (default), ``'stage'`` or ``'net'``.
        quantize (Sequence[str]): Which quantizers are on: ``('weights',)`` (default) or ``('weights', 'activations')``.
        num_iters (int): Steps per unit. Default 20000 (BRECQ); at least 1.
        batch_size (int): Rows per step. Default 32.
        inputs (str | dict): What a unit reads: the ``'quant'`` (default) or the ``'float'`` prefix, or the config of a
            mixer of both, such as :class:`ElementMix`.
        rounding (dict | None): How weights choose their levels, such as ``AdaRound``. Default None: they stay as they
            are, decided or at nearest rounding. With neither ``rounding`` nor ``train``: BRECQ's first step,
            ``AdaRound`` at a rate of 1e-3.
        train (dict | None): Role -> ``dict(lr=..., schedule='constant', optimizer=dict(type='Adam'), max_bits=None)``,
            see :class:`mmquant.reconstruction.optimizers.Training`. Roles are those of roundings
            (``rounding`` of AdaRound, ``weight`` and ``weight_scale`` of StraightThrough), of adapters (``affine``,
            ``bias``) and of activation quantizers (``activation_scale``).
        terms (dict | None): Name -> config of a term or regularizer, in place of or beside ``unit``
            (:class:`UnitLoss`) and ``rounding`` (:class:`RoundingRegularizer`); None takes one of them away.
        hooks (dict | None): Name -> config of a hook, in place of or before ``stem`` (:class:`LeaveStem`) and
            ``keep_best`` (:class:`KeepBest`); None takes one of them away.

    Raises:
        ConfigError: For unknown choices, values out of range, and roles that nothing in the model has.
    """

    def __init__(self, unit: str = 'block', quantize: Sequence[str] = ('weights', ), num_iters: int = 20000,
                 batch_size: int = 32, inputs: str | dict = 'quant', rounding: dict | None = None,
                 train: dict | None = None, terms: dict | None = None, hooks: dict | None = None) -> None:
        if rounding is None and train is None:
            rounding, train = dict(type='mmquant.AdaRound'), dict(rounding=dict(lr=1e-3))
        name = 'activations' if rounding is None else 'joint' if 'activations' in quantize else 'weights'
        super().__init__(name)
        if unit not in GRANULARITIES:
            raise ConfigError(f'unit must be one of {GRANULARITIES}, got {unit!r}')
        self.unit = unit
        self.settings = Settings(quantize, num_iters, batch_size, inputs, rounding, train, terms, hooks)
        self.evaluates = self.settings.mode

    def image_passes(self, units: int) -> int:
        return self.settings.num_iters * self.settings.batch_size

    def run(self, context: CalibrationContext) -> None:
        model, settings = context.model, self.settings
        settings.check_roles(model)
        visits = context.visits(self.unit, lambda unit: settings.wanted(model, unit), settings.streams, self.name,
                                settings.num_iters)
        with sound_gradients(model):
            for visit in visits:
                visit.record(**reconstruct(visit, settings))
        if text := undecided_text([r for r in context.records if r.get('step') == self.name]):
            MMLogger.get_current_instance().warning(text)
