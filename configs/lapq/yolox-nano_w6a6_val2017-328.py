_base_ = './yolox-nano_w4a4_val2017-328.py'

model = dict(quantizer=dict(weight=dict(bits=6), activation=dict(bits=6)))
