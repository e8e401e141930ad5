_base_ = './resnet18_w4a4_official.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
