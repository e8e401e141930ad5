_base_ = './yolox-nano_w8a8_per-tensor_val2017-328.py'

model = dict(quantizer=dict(weight=dict(bits=6), activation=dict(bits=6)))
