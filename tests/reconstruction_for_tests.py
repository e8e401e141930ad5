"""Reconstruction steps as tests need them: the stages of BRECQ, and joint ones."""
from mmquant.algorithms import Reconstruction

ADAROUND, ST = dict(type='mmquant.AdaRound'), dict(type='mmquant.StraightThrough')
ROLES = ('rounding', 'weight', 'weight_scale', 'affine', 'bias', 'activation_scale')


def trains(rates: dict, **more) -> dict:
    """Roles with these rates; all but roundings fall along a cosine."""
    return {role: dict(lr=rate, **({} if role == 'rounding' else dict(schedule='cosine')), **more)
            for role, rate in rates.items()}


def terms(p=2.0, regularizer=None, tail=None, **others) -> dict:
    """Of a reconstruction: the unit's, the regularizer's, and that of a tail."""
    found = dict(unit=dict(type='mmquant.UnitLoss', p=p))
    if regularizer is not None:
        found['rounding'] = dict(type='mmquant.RoundingRegularizer', **regularizer)
    if tail is not None:
        found['tail'] = dict(type='mmquant.TailLoss', p=p, **tail)
    return dict(found, **others)


def kept(**settings) -> dict:
    """The hook KeepBest."""
    return dict(keep_best=dict(type='mmquant.KeepBest', **settings))


def weights(lr=1e-3, rounding=None, p=2.0, regularizer=None, best=None, **more) -> dict:
    """Settings of a stage that learns roundings with float activations."""
    return dict(dict(type='mmquant.Reconstruction', rounding=rounding or ADAROUND, train=trains(dict(rounding=lr)),
                     terms=terms(p, regularizer), hooks=kept(**(best or {}))), **more)


def activations(lr=4e-4, p=2.0, max_bits=None, best=None, **more) -> dict:
    """Settings of a stage that learns activation scales with decided weights."""
    return dict(dict(type='mmquant.Reconstruction', quantize=('weights', 'activations'), inputs='float',
                     train=trains(dict(activation_scale=lr), max_bits=max_bits), terms=terms(p),
                     hooks=kept(every=0.25, **(best or {}))), **more)


def joint(rates, rounding=None, p=2.0, regularizer=None, tail=None, best=None, **more) -> dict:
    """Settings of a stage that learns several roles at once; the stem too."""
    return dict(dict(type='mmquant.Reconstruction', quantize=('weights', 'activations'), rounding=rounding or ADAROUND,
                     train=trains(rates), terms=terms(p, regularizer, tail),
                     hooks=dict(kept(**(best or {})), stem=None)), **more)


def step(settings: dict) -> Reconstruction:
    """The built step."""
    return Reconstruction(**{k: v for k, v in settings.items() if k != 'type'})


def run(context, settings: dict):
    """Run the step; returns the context."""
    step(settings).run(context)
    return context
