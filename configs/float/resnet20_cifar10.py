# ResNet-20 for CIFAR-10, evaluated with given weights.
_base_ = [
    '../_base_/datasets/cifar10_tar.py', '../_base_/evaluation_only.py', 'mmpretrain::_base_/default_runtime.py'
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmquant.ResNetCifar', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5)))
