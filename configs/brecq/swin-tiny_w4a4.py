_base_ = [
    '../_base_/models/swin-tiny.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/brecq.py',
    '../_base_/calibration/imagenet_1024.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# Products inside attention stay at 8 bits: most probabilities are below half a step of a 4-bit grid.
model = dict(quantizer=dict(_base_.quantizer, matmul_bits=8))
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
