_base_ = './mobilenet-v2_w4a4.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
