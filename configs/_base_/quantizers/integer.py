# What integer kernels take: weights signed and symmetric per output channel, without zero points; activations affine
# per tensor; everything at the bits of the leaf, 8 as a rule.
quantizer = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer', symmetric=True, granularity='channel'),
    activation=dict(type='mmquant.UniformAffineQuantizer'),
    overrides=[])
