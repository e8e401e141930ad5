_base_ = './repvgg-a0_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
