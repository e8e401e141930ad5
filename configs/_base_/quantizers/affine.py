# Affine, weights per output channel, activations per tensor; bits stand in the leaf. Stem and head have 8 bits wherever
# weights, or activations, are quantized at all.
quantizer = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer', granularity='channel'),
    activation=dict(type='mmquant.UniformAffineQuantizer'),
    overrides=[
        dict(position='first', w_bits=8, out_bits=8),
        dict(position='last', w_bits=8, in_bits=8),
    ])
