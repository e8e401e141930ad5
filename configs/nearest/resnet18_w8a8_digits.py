_base_ = [
    '../_base_/models/resnet18_digits.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/nearest.py',
    '../_base_/calibration/digits_256.py'
]

_base_.quantizer.weight.bits = 8
_base_.quantizer.activation.bits = 8
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.nearest)
