_base_ = './resnet20_w4a8_cifar10.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
