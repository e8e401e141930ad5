# LAPQ on 128 images: for small data sets.
_base_ = ['./lapq.py']

lapq = [dict(s, num_images=128) if 'num_images' in s else s for s in _base_.lapq]
