_base_ = './resnet101_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=None)))
