# 8-bit activations keep the ranges that were found.
_base_ = './yolox-nano_w4a4_val2017-328.py'

model = dict(quantizer=dict(activation=dict(bits=8)))
train_cfg = dict(steps=dict(activations=dict(train=dict(activation_scale=dict(max_bits=7)))))
