# As in LAPQ's code, per tensor: weights without a level at zero, their channels' means kept; the first layer, the last
# one, and the tensors after and before them stay float. Bits stand in the leaf.
quantizer = dict(
    weight=dict(type='mmquant.NoZeroQuantizer', keep_mean=True),
    activation=dict(type='mmquant.UniformAffineQuantizer'),
    overrides=[
        dict(position='first', w_bits=None, out_bits=None),
        dict(position='last', w_bits=None, in_bits=None),
    ])
