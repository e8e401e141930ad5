# Sums of powers of two, weights per output channel, activations per tensor; bits stand in the leaf. Weights of stem and
# head are uniform at 8 bits, as in the paper.
quantizer = dict(
    weight=dict(type='mmquant.APoTQuantizer', granularity='channel'),
    activation=dict(type='mmquant.APoTQuantizer'),
    overrides=[
        dict(position='first', weight=dict(type='mmquant.UniformAffineQuantizer', bits=8, granularity='channel')),
        dict(position='last', weight=dict(type='mmquant.UniformAffineQuantizer', bits=8, granularity='channel')),
    ])
