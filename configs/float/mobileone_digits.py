# MobileOne with a quarter to a half of the usual width, for digits of 32x32 pixels. Four convolution branches per block
# and BatchNorm weights without decay let the branches diverge, as in networks trained on large data sets: eight bits by
# minimum and maximum ruin the merged network.
_base_ = ['../_base_/datasets/digits.py', 'mmpretrain::_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MobileOne',
        arch=dict(
            num_blocks=[4, 4, 2, 1],
            width_factor=[0.5, 0.375, 0.25, 0.25],
            num_conv_branches=[4, 4, 4, 4],
            num_se_blocks=[0, 0, 0, 0]),
        out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5)))

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., by_epoch=True, begin=2, end=60, convert_to_iter_based=True),
]
# The test split is looked at after the last epoch only: it picks no epoch.
train_cfg = dict(by_epoch=True, max_epochs=60, val_interval=60)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=17), checkpoint=dict(interval=60))
randomness = dict(seed=0)
