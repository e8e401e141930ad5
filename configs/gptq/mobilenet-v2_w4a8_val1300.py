_base_ = './mobilenet-v2_w4a32_val1300.py'

model = dict(quantizer=dict(activation=dict(bits=8)))
