# Float weights, 2-bit activations per tensor, affine; the tensors behind the stem and before the head at 8 bits.
quantizer = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer', bits=None, granularity='channel'),
    activation=dict(type='mmquant.UniformAffineQuantizer', bits=2),
    overrides=[
        dict(position='first', out_bits=8),
        dict(position='last', in_bits=8),
    ])
