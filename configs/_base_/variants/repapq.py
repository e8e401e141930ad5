# What the parts of RepAPQ do for networks whose branches merge: nearest rounding with four choices of ranges, BRECQ,
# and each part alone on top of plain reconstruction (full weight ranges, squared errors, no factors, no stage term).
_base_ = ['../algorithms/brecq_short.py']

full = dict(type='mmquant.MinMaxObserver')
unsampled = dict(full, p=None, max_samples=None)
squared = dict(type='mmquant.LpNormObserver', p=2)
absolute = dict(type='mmquant.LpNormObserver', p=1)
nearest = dict(joint=None, affines=None, folded=None)
min_max = dict(nearest, nearest_weights=dict(observer=full), nearest=dict(observer=unsampled))
squares = dict(unit=dict(p=2), tail=dict(p=2))
plain = dict(terms=dict(unit=dict(p=2), tail=None), train=dict(affine=None))
ranges = dict(nearest=dict(observer=dict(p=2)))

variants = {
    'Nearest, min-max, one scale a tensor': dict(steps=min_max, quantizer=dict(weight=dict(granularity='tensor'))),
    'Nearest, min-max': dict(steps=min_max),
    'Nearest, squared error (p = 2)': dict(steps=dict(nearest, nearest_weights=dict(observer=squared), **ranges)),
    'Nearest, absolute error (p = 1)': dict(steps=dict(nearest, nearest_weights=dict(observer=absolute))),
    'BRECQ': dict(algorithm=dict(merge=dict(type='mmquant.Reparameterize'), **_base_.brecq)),
    'Plain reconstruction': dict(steps=dict(joint=plain, **ranges)),
    'Plain + absolute error for activation ranges': dict(steps=dict(joint=plain)),
    'Plain + absolute error as loss': dict(
        steps=dict(joint=dict(plain, terms=dict(unit=dict(p=1), tail=None)), **ranges)),
    'Plain + affine': dict(steps=dict(joint=dict(terms=plain['terms']), **ranges)),
    'Plain + stage term': dict(steps=dict(joint=dict(terms=squares, train=dict(affine=None)), **ranges)),
    'RepAPQ': dict(),
}
