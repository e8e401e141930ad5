# 4-bit weights, float activations, per tensor, as in LAPQ's code: weights without a level at zero, their channels'
# means kept; the first layer, the last one, and the tensors behind and before them stay float.
quantizer = dict(
    weight=dict(type='mmquant.NoZeroQuantizer', bits=4, keep_mean=True),
    activation=dict(type='mmquant.UniformAffineQuantizer', bits=None),
    overrides=[
        dict(position='first', w_bits=None, out_bits=None),
        dict(position='last', w_bits=None, in_bits=None),
    ])
