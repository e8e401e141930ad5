# 256 train images of COCO, stretched to 320x320.
_base_ = './coco_256.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 320), keep_ratio=False),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
]
calibration_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
calibration_input_shape = (3, 320, 320)  # one sample, for dry runs
del pipeline
