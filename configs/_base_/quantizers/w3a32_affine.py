# 3-bit weights per output channel, float activations per tensor, affine; stem and head at 8 bits.
quantizer = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer', bits=3, granularity='channel'),
    activation=dict(type='mmquant.UniformAffineQuantizer', bits=None),
    overrides=[
        dict(position='first', w_bits=8),
        dict(position='last', w_bits=8),
    ])
