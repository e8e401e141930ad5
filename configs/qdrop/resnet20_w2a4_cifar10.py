_base_ = './resnet20_w4a4_cifar10.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
