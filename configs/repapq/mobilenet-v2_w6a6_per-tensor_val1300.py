_base_ = './mobilenet-v2_w8a8_per-tensor_val1300.py'

model = dict(quantizer=dict(weight=dict(bits=6), activation=dict(bits=6)))
