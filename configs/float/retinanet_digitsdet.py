# RetinaNet on a ResNet-18 of a quarter of the usual width, for scenes of digits. Trains in minutes on a CPU.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', '../_base_/datasets/digitsdet.py',
    '../_base_/schedules/digitsdet_60e.py', 'mmdet::_base_/default_runtime.py'
]

model = dict(
    backbone=dict(depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=4),
    bbox_head=dict(
        num_classes=10,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=2, scales_per_octave=2, ratios=[1.0, 1.5, 2.2], strides=[8, 16, 32, 64])),
    test_cfg=dict(nms_pre=300))

default_hooks = dict(logger=dict(interval=19), checkpoint=dict(interval=60))
randomness = dict(seed=0)
