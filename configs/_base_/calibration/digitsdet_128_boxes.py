# As digitsdet_128.py, with the boxes of the digits, for objectives that need them.
_base_ = ['./digitsdet_128.py']

calibration_dataloader = dict(
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape')),
    ]))
