# 256 train images of COCO, letter-boxed to 416x416.
_base_ = './coco_256_640.py'

pipeline = [
    dict(s, scale=(416, 416)) if 'scale' in s else s for s in _base_.calibration_dataloader.dataset.dataset.pipeline
]
calibration_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
calibration_input_shape = (3, 416, 416)  # one sample, for dry runs
del pipeline
