# Faster R-CNN on a ResNet-18 of a quarter of the usual width, for scenes of digits. Trains in minutes on a CPU.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py', '../_base_/datasets/digitsdet.py',
    '../_base_/schedules/digitsdet_60e.py', 'mmdet::_base_/default_runtime.py'
]

proposals = dict(nms_pre=300, max_per_img=100)
model = dict(
    backbone=dict(depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(
        in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4], ratios=[1.0, 1.5, 2.2])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, finest_scale=28),
        bbox_head=dict(in_channels=32, fc_out_channels=128, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)), rpn_proposal=proposals, rcnn=dict(sampler=dict(num=64, pos_fraction=0.5))),
    test_cfg=dict(rpn=proposals))

default_hooks = dict(logger=dict(interval=19), checkpoint=dict(interval=60))
randomness = dict(seed=0)
