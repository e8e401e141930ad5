_base_ = './regnetx-3.2gf_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=2)))
