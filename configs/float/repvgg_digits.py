# RepVGG with a quarter of the usual width, for digits of 32x32 pixels. Three branches a block, a very high learning
# rate and BatchNorm weights without decay let the branches diverge, as in networks trained on large data sets: with one
# scale a tensor the merged network loses accuracy at 8 bits.
_base_ = './resnet18_digits.py'  # data, head and schedule

model = dict(
    backbone=dict(
        _delete_=True,
        type='RepVGG',
        arch=dict(
            num_blocks=[2, 3, 5, 1],
            width_factor=[1., 1., 1., 1.],
            group_layer_map=None,
            se_cfg=None,
            stem_channels=16),
        base_channels=16,
        strides=(1, 2, 2, 2),
        out_indices=(3, )))

optim_wrapper = dict(optimizer=dict(lr=1.0, weight_decay=2e-3), paramwise_cfg=dict(norm_decay_mult=0.))
_base_.param_scheduler[1].end = 30
train_cfg = dict(max_epochs=30, val_interval=30)
default_hooks = dict(checkpoint=dict(interval=30))
