# MobileOne with a quarter to a half of the usual width, for digits of 32x32 pixels. Four convolution branches per block
# and BatchNorm weights without decay let the branches diverge, as in networks trained on large data sets: eight bits by
# minimum and maximum ruin the merged network.
_base_ = './resnet18_digits.py'  # data, head and schedule

model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileOne',
        arch=dict(
            num_blocks=[4, 4, 2, 1],
            width_factor=[0.5, 0.375, 0.25, 0.25],
            num_conv_branches=[4, 4, 4, 4],
            num_se_blocks=[0, 0, 0, 0]),
        out_indices=(3, )))

optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.))
_base_.param_scheduler[1].end = 60
train_cfg = dict(max_epochs=60, val_interval=60)
default_hooks = dict(checkpoint=dict(interval=60))
