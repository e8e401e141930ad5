_base_ = [
    '../_base_/models/resnet18_digits.py', '../_base_/quantizers/apot.py', '../_base_/algorithms/apot.py',
    '../_base_/calibration/digits_256.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# What stem and head pass on and read is uniform, too.
_base_.quantizer.overrides[0].output = dict(type='mmquant.UniformAffineQuantizer', bits=8)
_base_.quantizer.overrides[1].input = dict(type='mmquant.UniformAffineQuantizer', bits=8)
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.apot)
