# As affine.py, for integer kernels: 8-bit weights have no zero points (of low bits, they vanish in int8 codes). A leaf
# of 8-bit weights sets weight.symmetric, too.
_base_ = './affine.py'

quantizer = dict(overrides=[
    dict(position='first', weight=dict(bits=8, symmetric=True), out_bits=8),
    dict(position='last', weight=dict(bits=8, symmetric=True), in_bits=8),
])
