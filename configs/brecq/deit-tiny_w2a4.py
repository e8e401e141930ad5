_base_ = './deit-tiny_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
