# The grid against the uniform one at the same bits, with nearest rounding and with GPTQ; stem and head are the same.
nearest = dict(weights=None, activation_ranges=None)
uniform = dict(
    weight=dict(type='mmquant.UniformAffineQuantizer'), activation=dict(type='mmquant.UniformAffineQuantizer'))
signed = dict(weight=dict(type='mmquant.UniformAffineQuantizer', symmetric=True),
              activation=dict(type='mmquant.UniformAffineQuantizer'))

variants = {
    'Uniform, symmetric, nearest': dict(steps=nearest, quantizer=signed),
    'Uniform, affine, nearest': dict(steps=nearest, quantizer=uniform),
    'APoT, nearest': dict(steps=nearest),
    'Uniform, symmetric, GPTQ': dict(quantizer=signed),
    'Uniform, affine, GPTQ': dict(quantizer=uniform),
    'APoT, GPTQ': dict(),
}
