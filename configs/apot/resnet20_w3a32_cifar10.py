_base_ = './resnet20_w4a32_cifar10.py'

model = dict(quantizer=dict(weight=dict(bits=3)))
