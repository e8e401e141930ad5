_base_ = './swin-tiny_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
