_base_ = './resnet18_w4a8_digits.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
