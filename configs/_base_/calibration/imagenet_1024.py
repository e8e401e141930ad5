# 1024 images drawn from the train split of ImageNet with the train pipeline, as in the official code of BRECQ.
_base_ = './imagenet_512.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
calibration_dataloader = dict(dataset=dict(num_samples=1024, dataset=dict(pipeline=pipeline)))
del pipeline
