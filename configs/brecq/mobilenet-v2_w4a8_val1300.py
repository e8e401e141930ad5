_base_ = './mobilenet-v2_w8a8_val1300.py'

model = dict(quantizer=dict(weight=dict(bits=4)))
