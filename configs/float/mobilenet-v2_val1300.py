# MobileNetV2 converted from TensorFlow (its convolutions pad as TensorFlow does), evaluated with given weights.
_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py', '../_base_/datasets/val1300.py', '../_base_/evaluation_only.py',
    'mmpretrain::_base_/default_runtime.py'
]

model = dict(backbone=dict(conv_cfg=dict(type='Conv2dAdaptivePadding')))
