# ResNet-56 for CIFAR-10, evaluated with given weights.
_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(depth=56))
