# The regularizer is relative to the loss of a unit, which is in the hundreds here: with the usual factor a third of the
# 2-bit roundings stayed undecided.
_base_ = ['./brecq_mobilenet_1k_b16.py']

brecq = [
    dict(s, regularizer=dict(s['regularizer'], weight=100, relative=True)) if 'regularizer' in s else s
    for s in _base_.brecq
]
