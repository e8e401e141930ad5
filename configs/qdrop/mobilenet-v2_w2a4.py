_base_ = './mobilenet-v2_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
