# LAPQ on 64 images with two sweeps, clips begun with 64: for larger networks without a GPU. Its loss is the divergence:
# the distance of logits prefers a silent network where nearest rounding leaves little of it.
_base_ = ['./lapq.py']

divergence = dict(type='mmquant.OutputDivergence')
changes = dict(searcher=dict(type='mmquant.PatternSearch', num_sweeps=2))
lapq = [
    dict(s, num_images=64, objective=divergence, **(dict(init_images=64) if 'norms' in s else changes))
    if 'num_images' in s else s for s in _base_.lapq
]
