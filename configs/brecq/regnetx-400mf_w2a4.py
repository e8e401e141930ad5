_base_ = './regnetx-400mf_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
