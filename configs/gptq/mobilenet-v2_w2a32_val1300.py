_base_ = './mobilenet-v2_w4a32_val1300.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
