# LAPQ on 64 images with two sweeps, clips begun with 64: for larger networks without a GPU.
_base_ = ['./lapq.py']

changes = dict(searcher=dict(type='mmquant.PatternSearch', num_sweeps=2))
lapq = [
    dict(s, num_images=64, **(dict(init_images=64) if 'norms' in s else changes)) if 'num_images' in s else s
    for s in _base_.lapq
]
