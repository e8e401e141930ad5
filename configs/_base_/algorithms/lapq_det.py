# LAPQ for detectors: the divergence of the raw outputs of 32 images; clips begin with 8 images.
_base_ = './lapq.py'

lapq = dict(nearest=dict(num_images=32, init_images=8), joint=dict(num_images=32))
