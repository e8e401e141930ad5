# LAPQ on 128 images: for small data sets, or machines without a GPU.
_base_ = './lapq.py'

lapq = dict(nearest=dict(num_images=128), joint=dict(num_images=128))
