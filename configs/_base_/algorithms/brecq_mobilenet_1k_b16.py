# BRECQ for MobileNetV2 with 1000 + 500 steps a unit of 16 images: half the memory and time of batches of 32, for CPUs.
# The regularizer is relative to each unit's loss, which is in the hundreds here: the usual factor left up to a third of
# the roundings undecided.
_base_ = ['./brecq_mobilenet_1k.py']

brecq = [
    dict(s, regularizer=dict(s['regularizer'], weight=100, relative=True)) if 'regularizer' in s else s
    for s in (dict(s, batch_size=16) if 'target' in s else s for s in _base_.brecq)
]
