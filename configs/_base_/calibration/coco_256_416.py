# 256 train images of COCO, letter-boxed to 416x416.
_base_ = './coco_256.py'

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(416, 416), keep_ratio=True),
    dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
]
calibration_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
calibration_input_shape = (3, 416, 416)  # one sample, for dry runs
del pipeline
