_base_ = [
    '../_base_/models/mobilenet-v2_val1300.py', '../_base_/quantizers/integer.py',
    '../_base_/algorithms/nearest_integer.py', '../_base_/calibration/val1300_calib1000.py'
]

_base_.quantizer.weight.update(bits=8, symmetric=True)
_base_.quantizer.activation.bits = 8
model = dict(quantizer=_base_.quantizer)
train_cfg = dict(dataloader=_base_.calibration_dataloader, steps=_base_.nearest)
