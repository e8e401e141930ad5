_base_ = './mobilenet-v2_w4a8_val1300.py'

model = dict(quantizer=dict(activation=dict(bits=None)))
