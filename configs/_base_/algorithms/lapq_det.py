# LAPQ for detectors: the divergence of the raw outputs of 32 images; clips begin with 8 images.
_base_ = ['./lapq.py']

lapq = [
    dict(s, num_images=32, **(dict(init_images=8) if 'norms' in s else {})) if 'num_images' in s else s
    for s in _base_.lapq
]
