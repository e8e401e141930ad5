_base_ = './inception-v3_w4a4.py'

model = dict(quantizer=dict(weight=dict(bits=None), activation=dict(bits=2)))
