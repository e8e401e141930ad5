_base_ = './resnet50_w4a4.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
