# 512 images drawn from the train split of ImageNet, with the test pipeline of Inception-V3: no augmentation.
_base_ = './imagenet_512.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=342, edge='short'),
    dict(type='CenterCrop', crop_size=299),
    dict(type='PackInputs'),
]
calibration_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
calibration_input_shape = (3, 299, 299)  # one sample, for dry runs
del pipeline
