# The 128 train images of train2017-128_416 and their mirror images.
_base_ = ['./train2017-128_416.py']

images = _base_.calibration_dataloader['dataset']
load, *rest = images['pipeline']
mirrored = dict(images, pipeline=[load, dict(type='RandomFlip', prob=1.0), *rest])
calibration_dataloader = dict(
    dataset=dict(_delete_=True, type='mmengine.ConcatDataset', datasets=[images, mirrored]))
