# At 8 bits shifted means cost more than rounding: few steps, and biases are corrected when the weights are done.
_base_ = './yolox-nano_w4a8_val2017-328.py'

model = dict(quantizer=dict(weight=dict(bits=8)))
train_cfg = dict(
    steps=dict(weights=dict(num_iters=100), biases=dict(type='mmquant.CorrectBias', after='weights')))
