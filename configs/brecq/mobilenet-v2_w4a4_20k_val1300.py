_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/affine.py', '../_base_/algorithms/brecq.py',
    '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.bits = 4
_base_.quantizer.activation.bits = 4
# A stronger pull of the roundings, as the authors advise for depthwise convolutions.
_base_.brecq.weights.terms.rounding.weight = 0.1
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.brecq)
