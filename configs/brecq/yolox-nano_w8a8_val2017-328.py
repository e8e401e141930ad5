# At 8 bits shifted means cost more than rounding: biases are corrected when the weights are done, and the ranges of
# activations stay as they were found.
_base_ = './yolox-nano_w4a4_val2017-328.py'

model = dict(quantizer=dict(weight=dict(bits=8), activation=dict(bits=8)))
train_cfg = dict(
    steps=dict(
        affines=dict(type='mmquant.InsertOutputAffine', layers='all', after='weights'),
        biases=dict(type='mmquant.CorrectBias', after='affines'),
        activations=dict(train=dict(activation_scale=dict(max_bits=7)))))
