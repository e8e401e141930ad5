# RepVGG with a quarter of the usual width, for digits of 32x32 pixels. Three branches a block, a very high learning
# rate and BatchNorm weights without decay let the branches diverge, as in networks trained on large data sets: with one
# scale a tensor the merged network loses accuracy at 8 bits.
_base_ = ['../_base_/datasets/digits.py', 'mmpretrain::_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='RepVGG',
        arch=dict(
            num_blocks=[2, 3, 5, 1],
            width_factor=[1., 1., 1., 1.],
            group_layer_map=None,
            se_cfg=None,
            stem_channels=16),
        base_channels=16,
        strides=(1, 2, 2, 2),
        out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=128,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5)))

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=1.0, momentum=0.9, nesterov=True, weight_decay=2e-3),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0., by_epoch=True, begin=2, end=30, convert_to_iter_based=True),
]
# The test split is looked at after the last epoch only: it picks no epoch.
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=30)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=17), checkpoint=dict(interval=30))
randomness = dict(seed=0)
