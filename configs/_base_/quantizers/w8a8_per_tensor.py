# 8-bit weights and 8-bit activations per tensor, affine; stem and head at 8 bits.
quantizer = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer', bits=8, granularity='tensor'),
    activation=dict(type='mmquant.UniformAffineQuantizer', bits=8),
    overrides=[
        dict(position='first', w_bits=8, out_bits=8),
        dict(position='last', w_bits=8, in_bits=8),
    ])
